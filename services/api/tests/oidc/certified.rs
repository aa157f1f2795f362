//! A real provider, as it is certified: everything that the hostile one only pretends.

use api::oidc::{CALLBACK, Flow, Limits, Outcome, Provider, Refusal, Verified};
use domain::{
    Role,
    sso::{Algorithm, Mapped, Settings},
};
use eventlog::{EventLog, Secret};
use reqwest::Method;
use testkit::CertifiedProvider;

use crate::{
    browser::Browser,
    lab::{PUBLIC_URL, flow, parameter, refused},
};

struct Lab {
    certified: CertifiedProvider,
    known: Provider,
    flow: Flow,
    log: EventLog,
    browser: Browser,
    _nats: testkit::Nats,
}

async fn lab() -> Lab {
    let nats = testkit::Nats::start().await.expect("NATS starts");
    let config = eventlog::Config { url: nats.url().into(), name: "test".into(), master_key: None };
    let log = EventLog::connect(&config).await.expect("NATS takes us");
    let place = |path: &str| format!("{PUBLIC_URL}{path}");
    let certified = CertifiedProvider::start(&place(CALLBACK), &place("/login")).await.expect("the provider starts");
    let known = Provider {
        settings: Settings::new(certified.issuer(), CertifiedProvider::CLIENT_ID),
        secret: Some(Secret::new(certified.secret())),
        public_url: PUBLIC_URL.into(),
    };
    let flow = flow(&log, Limits::default(), "127.0.0.1");
    Lab { certified, known, flow, log, browser: Browser::new(), _nats: nats }
}

impl Lab {
    async fn sign_in(&self) -> Result<Verified, Refusal> {
        let begun = self.flow.begin(&self.known, "/projects/shop", None).await?;
        let back = self.browser.sign_in(&self.certified.issuer(), &begun.location, CertifiedProvider::PERSON).await;
        assert!(back.as_str().starts_with(&format!("{PUBLIC_URL}{CALLBACK}?")), "{back}");
        self.flow.finish(&self.known, back.query().unwrap_or_default(), Some(&begun.browser)).await
    }
}

#[tokio::test]
async fn a_person_signs_in_with_name_address_and_role() {
    let lab = lab().await;
    let report = lab.flow.probe(&lab.known).await;
    assert!(report.good && report.checks.iter().all(|check| check.outcome == Outcome::Passed), "{report:#?}");
    let ann = lab.sign_in().await.expect("signed in");
    assert_eq!((ann.issuer, ann.subject.as_str()), (lab.certified.issuer(), CertifiedProvider::PERSON));
    assert_eq!((ann.display_name.as_str(), ann.email.as_deref()), ("ann", Some("ann@example.com")));
    assert_eq!(ann.role, Mapped { role: Role::Operator, projects: None });
    assert_eq!(ann.return_to, "/projects/shop");
    // It knows her still, and asks for nothing.
    let begun = lab.flow.begin(&lab.known, "/", None).await.expect("begun");
    let answer = lab.browser.send(Method::GET, begun.location.parse().expect("an address"), &[]).await;
    let back = lab.browser.follow(&lab.certified.issuer(), answer).await.expect_err("straight back");
    assert_eq!(parameter(back.as_str(), "iss"), Some(lab.certified.issuer()), "RFC 9207");
    let again = lab.flow.finish(&lab.known, back.query().unwrap_or_default(), Some(&begun.browser)).await;
    assert_eq!(again.expect("signed in").subject, CertifiedProvider::PERSON);
}

#[tokio::test]
async fn new_keys_are_found() {
    let mut lab = lab().await;
    lab.sign_in().await.expect("signed in");
    lab.certified.restart().await.expect("it starts again");
    lab.sign_in().await.expect("signed in with new keys");
}

#[tokio::test]
async fn signing_out_ends_the_session_at_the_provider_too() {
    let lab = lab().await;
    let ann = lab.sign_in().await.expect("signed in");
    let issuer = lab.certified.issuer();
    let url = lab.flow.logout_url(&lab.known, Some(&ann.id_token)).await.expect("it has such a place");
    let back = lab.browser.sign_out(&issuer, &url).await;
    assert_eq!(back.as_str(), format!("{PUBLIC_URL}/login"));
    // It asks who she is again.
    let begun = lab.flow.begin(&lab.known, "/", None).await.expect("begun");
    let answer = lab.browser.send(Method::GET, begun.location.parse().expect("an address"), &[]).await;
    let (page, _) = lab.browser.follow(&issuer, answer).await.expect("a page that asks");
    assert!(page.path().starts_with("/interaction/"), "{page}");
}

#[tokio::test]
async fn a_code_is_good_once_and_only_for_whom_it_was_given() {
    let mut lab = lab().await;
    let issuer = lab.certified.issuer();
    let begun = lab.flow.begin(&lab.known, "/", None).await.expect("begun");
    let back = lab.browser.sign_in(&issuer, &begun.location, CertifiedProvider::PERSON).await;
    let stolen = parameter(back.as_str(), "code").expect("a code");
    // In another sign-in: its verifier is another.
    let next = lab.flow.begin(&lab.known, "/", None).await.expect("begun");
    let state = parameter(&next.location, "state").expect("a state");
    let pairs = [("state", state.as_str()), ("code", &stolen), ("iss", &issuer)];
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    assert_eq!(refused(lab.flow.finish(&lab.known, &query, Some(&next.browser)).await), "code_refused");
    // And a client that is another's.
    lab.known.secret = Some(Secret::new("wrong"));
    assert_eq!(refused(lab.sign_in().await), "client_refused");
}

#[tokio::test]
async fn what_it_signs_with_must_be_accepted() {
    let mut lab = lab().await;
    // It offers both, and signs for this client with the first.
    lab.known.settings.algorithms = [Algorithm::Es256].into();
    assert_eq!(refused(lab.sign_in().await), "algorithm_refused");
    lab.known.settings.algorithms = [Algorithm::Ps256].into();
    lab.flow = flow(&lab.log, Limits::default(), "127.0.0.1");
    assert_eq!(refused(lab.sign_in().await), "algorithm_none_in_common");
}

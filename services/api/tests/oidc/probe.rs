//! "Test this provider" says plainly what is wrong.

use api::oidc::{Outcome, Report};
use serde_json::json;
use testkit::{Fault, Leg};

use crate::lab::{Lab, flow, impatient};

async fn report(lab: &Lab) -> Report {
    lab.flow.probe(&lab.known).await
}

/// Exactly the check `name` fails, and says `words`; what needs it is skipped.
#[track_caller]
fn fails(report: &Report, name: &str, words: &str) {
    let failed: Vec<_> = report.checks.iter().filter(|check| check.outcome == Outcome::Failed).collect();
    let [failed] = failed[..] else { panic!("{report:#?}") };
    assert!(failed.name == name && failed.detail.contains(words) && !report.good, "{report:#?}");
}

crate::cases! {
    probe_of_a_good_provider(lab) {
        let report = report(&lab).await;
        assert!(report.good, "{report:#?}");
        let names: Vec<_> = report.checks.iter().map(|check| check.name).collect();
        assert_eq!(names, [
            "settings", "redirect_uri", "address", "discovery", "issuer", "endpoints", "algorithms", "pkce", "keys",
            "client_secret", "scopes", "logout",
        ]);
        assert!(report.checks.iter().all(|check| check.outcome == Outcome::Passed), "{report:#?}");
    }

    probe_of_bad_settings(lab) {
        let mut lab = lab;
        lab.known.settings.issuer = "http://id.example.com".into();
        let report = report(&lab).await;
        fails(&report, "settings", "https://");
        assert!(report.checks.iter().any(|check| check.outcome == Outcome::Skipped));
    }

    probe_of_a_name_that_nobody_knows(lab) {
        let mut lab = lab;
        lab.known.settings.issuer = "https://nobody.invalid".into();
        fails(&report(&lab).await, "address", "DNS");
    }

    probe_of_a_local_address(lab) {
        let mut lab = lab;
        lab.flow = flow(&lab.log, impatient(), "");
        fails(&report(&lab).await, "address", "URL_ALLOW_LOCAL");
    }

    probe_where_nobody_listens(lab) {
        let mut lab = lab;
        lab.known.settings.issuer = format!("http://127.0.0.1:{}", testkit::free_port());
        fails(&report(&lab).await, "discovery", "nothing answers");
    }

    probe_without_tls(lab) {
        let mut lab = lab;
        lab.known.settings.issuer = lab.provider.issuer().replace("http:", "https:");
        fails(&report(&lab).await, "discovery", "certificate");
    }

    probe_of_a_wrong_path(lab) {
        let mut lab = lab;
        lab.known.settings.issuer.push_str("/realms/wrong");
        fails(&report(&lab).await, "discovery", "404");
    }

    probe_of_a_provider_that_hangs(lab) {
        let mut lab = lab;
        lab.flow = flow(&lab.log, impatient(), "127.0.0.1");
        lab.provider.fail(Leg::Discovery, Fault::Hang);
        fails(&report(&lab).await, "discovery", "in time");
    }

    probe_of_a_page_that_is_no_provider(lab) {
        lab.provider.fail(Leg::Discovery, Fault::Garbage);
        fails(&report(&lab).await, "discovery", "not what the specification says");
    }

    probe_of_another_issuer(lab) {
        lab.provider.discovery(|document| document["issuer"] = json!("https://id.example.com/"));
        fails(&report(&lab).await, "issuer", "`https://id.example.com/`");
    }

    probe_of_missing_endpoints(lab) {
        lab.provider.discovery(|document| document["jwks_uri"] = json!(null));
        fails(&report(&lab).await, "endpoints", "does not say");
    }

    probe_without_a_common_algorithm(lab) {
        lab.provider.discovery(|document| document["id_token_signing_alg_values_supported"] = json!(["HS256", "none"]));
        fails(&report(&lab).await, "algorithms", "RS256");
    }

    probe_without_pkce(lab) {
        lab.provider.discovery(|document| document["code_challenge_methods_supported"] = json!(["plain"]));
        fails(&report(&lab).await, "pkce", "S256");
    }

    probe_of_a_provider_that_does_not_speak_of_pkce(lab) {
        lab.provider.discovery(|document| document["code_challenge_methods_supported"] = json!(null));
        let report = report(&lab).await;
        let pkce = report.checks.iter().find(|check| check.name == "pkce").expect("looked for");
        assert!(report.good && pkce.outcome == Outcome::Warning, "{report:#?}");
    }

    probe_without_keys(lab) {
        lab.provider.keys(|set| set["keys"] = json!([]));
        fails(&report(&lab).await, "keys", "no key");
    }

    probe_with_keys_of_the_wrong_kind(lab) {
        let mut lab = lab;
        lab.known.settings.algorithms = [domain::sso::Algorithm::Rs256].into();
        lab.provider.keys(|set| set["keys"].as_array_mut().expect("keys").retain(|key| key["kty"] == "EC"));
        fails(&report(&lab).await, "keys", "signs in no way");
    }

    probe_where_the_keys_are_down(lab) {
        lab.provider.fail(Leg::Keys, Fault::Status(502));
        fails(&report(&lab).await, "keys", "502");
    }

    probe_warns_of_what_somebody_should_know(lab) {
        let mut lab = lab;
        lab.known.secret = None;
        lab.known.public_url = "http://127.0.0.1:7070".into();
        lab.known.settings.scopes.push("groups".into());
        lab.provider.discovery(|document| document["end_session_endpoint"] = json!(null));
        let report = report(&lab).await;
        let warned: Vec<_> = report.checks.iter().filter(|check| check.outcome == Outcome::Warning).collect();
        let names: Vec<_> = warned.iter().map(|check| check.name).collect();
        assert!(report.good);
        assert_eq!(names, ["redirect_uri", "client_secret", "scopes", "logout"]);
        assert!(warned[0].detail.contains("PUBLIC_URL") && warned[2].detail.contains("groups"));
    }
}

//! Which provider it is: the environment's, else the settings', else none.

use api::oidc::{Config, Flow, Limits};
use domain::{
    Key,
    sso::{self, Settings, Sso},
};
use eventlog::Secret;

use crate::lab::{Lab, PUBLIC_URL};

fn flow(lab: &Lab, variables: &'static [(&str, &str)]) -> Flow {
    let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    Flow::new(lab.log.clone(), Limits::default(), Config::read(get).expect("good"), PUBLIC_URL).expect("a flow")
}

async fn decide(lab: &Lab, command: sso::Command) {
    let context = runtime::clock::context("admin");
    lab.log.execute(&Key::<Sso>::sso(), command, &context).await.expect("accepted");
}

#[tokio::test]
async fn the_environment_speaks_before_the_settings_and_lends_them_nothing() {
    let lab = Lab::start().await;
    let silent = flow(&lab, &[]);
    assert!(silent.provider().await.expect("read").is_none());

    let settings = Settings::new("https://id.example.com", "sluice");
    decide(&lab, sso::Command::Configure { settings: settings.clone() }).await;
    let known = silent.provider().await.expect("read").expect("declared");
    assert_eq!((known.settings, known.secret), (settings.clone(), None));
    assert_eq!(known.public_url, PUBLIC_URL);

    let place = Key::<Sso>::sso().secret("1");
    let version = lab.log.vault().put(&place, &Secret::new("kept")).await.expect("sealed");
    decide(&lab, sso::Command::SetSecret { secret: place, version }).await;
    let known = silent.provider().await.expect("read").expect("declared");
    assert_eq!(known.secret, Some(Secret::new("kept")));
    assert!(!format!("{known:?}").contains("kept"));

    let loud = flow(&lab, &[("OIDC_ISSUER", "https://other.example.com"), ("OIDC_CLIENT_ID", "sluice")]);
    let known = loud.provider().await.expect("read").expect("declared");
    assert_eq!((known.settings.issuer.as_str(), known.secret), ("https://other.example.com", None));

    // Whoever moves to another issuer takes no secret along.
    let moved = Settings { issuer: "https://evil.example.com".into(), ..settings };
    decide(&lab, sso::Command::Configure { settings: moved }).await;
    assert_eq!(silent.provider().await.expect("read").expect("declared").secret, None);
}

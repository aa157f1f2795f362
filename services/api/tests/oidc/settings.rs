//! Which provider it is: the environment's, else the settings', else none.

use api::oidc::Config;
use domain::{
    Key,
    sso::{self, Settings, Sso},
};
use eventlog::Secret;

use crate::lab::{Lab, PUBLIC_URL};

fn config(variables: &'static [(&str, &str)]) -> Config {
    let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    Config::read(get, PUBLIC_URL).expect("good")
}

async fn decide(lab: &Lab, command: sso::Command) {
    let context = runtime::clock::context("admin");
    lab.log.execute(&Key::<Sso>::sso(), command, &context).await.expect("accepted");
}

#[tokio::test]
async fn the_environment_speaks_before_the_settings_and_lends_them_nothing() {
    let lab = Lab::start().await;
    let silent = config(&[]);
    assert!(lab.flow.provider(&silent).await.expect("read").is_none());

    let settings = Settings::new("https://id.example.com", "sluice");
    decide(&lab, sso::Command::Configure { settings: settings.clone() }).await;
    let known = lab.flow.provider(&silent).await.expect("read").expect("declared");
    assert_eq!((known.settings, known.secret), (settings.clone(), None));
    assert_eq!(known.public_url, PUBLIC_URL);

    let place = Key::<Sso>::sso().secret("1");
    let version = lab.log.vault().put(&place, &Secret::new("kept")).await.expect("sealed");
    decide(&lab, sso::Command::SetSecret { secret: place, version }).await;
    let known = lab.flow.provider(&silent).await.expect("read").expect("declared");
    assert_eq!(known.secret, Some(Secret::new("kept")));
    assert!(!format!("{known:?}").contains("kept"));

    let loud = config(&[("OIDC_ISSUER", "https://other.example.com"), ("OIDC_CLIENT_ID", "sluice")]);
    let known = lab.flow.provider(&loud).await.expect("read").expect("declared");
    assert_eq!((known.settings.issuer.as_str(), known.secret), ("https://other.example.com", None));

    // Whoever moves to another issuer takes no secret along.
    let moved = Settings { issuer: "https://evil.example.com".into(), ..settings };
    decide(&lab, sso::Command::Configure { settings: moved }).await;
    assert_eq!(lab.flow.provider(&silent).await.expect("read").expect("declared").secret, None);
}

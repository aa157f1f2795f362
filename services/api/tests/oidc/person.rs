//! Whom the provider speaks of, and what they may do.

use std::collections::BTreeSet;

use domain::{
    Role,
    sso::{Mapped, NoRole},
};
use serde_json::{Value, json};
use testkit::{HostileProvider, Leg};

use crate::lab::{Lab, PUBLIC_URL, parameter};

fn roles(lab: &Lab, value: Value) {
    lab.provider.claims(move |claims| claims["roles"] = value.clone());
}

fn without(lab: &Lab, names: &'static [&'static str]) {
    lab.provider.claims(move |claims| {
        let claims = claims.as_object_mut().expect("an object");
        names.iter().for_each(|name| drop(claims.remove(*name)));
    });
}

crate::cases! {
    everything_is_well(lab) {
        let ann = lab.accepts().await;
        assert_eq!((ann.issuer.as_str(), ann.subject.as_str()), (lab.provider.issuer(), HostileProvider::SUBJECT));
        assert_eq!((ann.display_name.as_str(), ann.email.as_deref()), ("ann", Some("ann@example.com")));
        assert_eq!(ann.role, Mapped { role: Role::Operator, projects: None });
        assert_eq!(ann.return_to, "/projects/shop");
        assert_eq!(lab.provider.hits(Leg::Userinfo), 1);
        assert!(!format!("{ann:?}").contains("eyJ"), "tokens do not show in a log line");
    }

    userinfo_of_somebody_else(lab) {
        lab.provider.userinfo(|claims| claims["sub"] = json!("another"));
        lab.refuses("userinfo_subject_wrong").await;
    }

    userinfo_of_nobody(lab) {
        for nobody in [json!(null), json!(7), json!({})] {
            lab.provider.userinfo(move |claims| claims["sub"] = nobody.clone());
            lab.refuses("userinfo_subject_missing").await;
        }
    }

    userinfo_that_is_no_object(lab) {
        for odd in [json!([]), json!("x"), json!(null)] {
            lab.provider.userinfo(move |claims| claims.clone_from(&odd));
            lab.refuses("userinfo_garbage").await;
        }
    }

    unverified_email(lab) {
        for verified in [json!(false), json!("true"), json!(1), json!(null)] {
            let unverified = verified.clone();
            lab.provider.claims(move |claims| {
                claims.as_object_mut().expect("an object").remove("preferred_username");
                claims["email_verified"] = unverified.clone();
            });
            // One that is neither true nor false is not even read by the crate.
            if verified == json!(1) {
                lab.refuses("id_token_malformed").await;
                continue;
            }
            let ann = lab.accepts().await;
            assert_eq!((ann.display_name.as_str(), ann.email), (HostileProvider::SUBJECT, None), "{verified}");
        }
    }

    verified_email_for_want_of_a_name(lab) {
        without(&lab, &["preferred_username"]);
        assert_eq!(lab.accepts().await.display_name, "ann@example.com");
    }

    email_verified_by_another_source(lab) {
        without(&lab, &["preferred_username", "email_verified"]);
        lab.provider.userinfo(|claims| {
            claims["email_verified"] = json!(true);
            claims["email"] = json!("boss@example.com");
        });
        assert_eq!(lab.accepts().await.display_name, HostileProvider::SUBJECT);
    }

    name_that_pretends(lab) {
        lab.provider.claims(|claims| claims["preferred_username"] = json!("\u{202e}nimda\u{202c}\n\r\u{0}\u{200b}"));
        assert_eq!(lab.accepts().await.display_name, "nimda");
    }

    huge_name(lab) {
        lab.provider.claims(|claims| claims["preferred_username"] = json!("x".repeat(20_000)));
        assert_eq!(lab.accepts().await.display_name.len(), 128);
    }

    new_subject_under_an_old_name(lab) {
        let ann = lab.accepts().await;
        lab.provider.claims(|claims| claims["sub"] = json!("another"));
        lab.provider.userinfo(|claims| claims["sub"] = json!("another"));
        let other = lab.accepts().await;
        assert_eq!(ann.display_name, other.display_name);
        assert_ne!(ann.subject, other.subject, "what tells people apart is not their name");
    }

    renamed_person(lab) {
        let before = lab.accepts().await;
        lab.provider.claims(|claims| claims["preferred_username"] = json!("ann.married"));
        let after = lab.accepts().await;
        assert_eq!((before.issuer, before.subject), (after.issuer, after.subject));
        assert_eq!(after.display_name, "ann.married");
    }

    roles_missing(lab) {
        without(&lab, &["roles"]);
        lab.refuses("roles_missing").await;
    }

    roles_empty(lab) {
        roles(&lab, json!([]));
        lab.refuses("roles_empty").await;
    }

    roles_of_a_wrong_type(lab) {
        for odd in [json!("admin"), json!(1), json!(true), json!({ "admin": true }), json!([1]), json!([["admin"]])] {
            roles(&lab, odd);
            lab.refuses("roles_wrong_type").await;
        }
    }

    roles_huge(lab) {
        roles(&lab, json!((0..2_000).map(|n| n.to_string()).collect::<Vec<_>>()));
        lab.refuses("roles_too_many").await;
    }

    one_huge_role(lab) {
        roles(&lab, json!(["admin", "x".repeat(10_000)]));
        lab.refuses("roles_too_many").await;
    }

    roles_that_are_worth_nothing(lab) {
        roles(&lab, json!(["Admin", "ADMIN", " admin", "root", "admin\u{0}"]));
        lab.refuses("roles_no_match").await;
    }

    highest_role_wins(lab) {
        roles(&lab, json!(["viewer", "admin", "operator", "other"]));
        assert_eq!(lab.accepts().await.role.role, Role::Admin);
    }

    roles_from_userinfo(lab) {
        without(&lab, &["roles"]);
        lab.provider.userinfo(|claims| claims["roles"] = json!(["viewer"]));
        assert_eq!(lab.accepts().await.role.role, Role::Viewer);
    }

    roles_of_userinfo_do_not_add_to_those_of_the_id_token(lab) {
        lab.provider.userinfo(|claims| claims["roles"] = json!(["admin"]));
        assert_eq!(lab.accepts().await.role.role, Role::Operator);
        roles(&lab, json!([]));
        lab.refuses("roles_empty").await;
    }

    roles_in_a_nested_claim(lab) {
        let mut lab = lab;
        lab.known.settings.roles_claim = "realm_access.roles".into();
        lab.refuses("roles_missing").await;
        lab.provider.claims(|claims| claims["realm_access"] = json!({ "roles": ["viewer"] }));
        assert_eq!(lab.accepts().await.role.role, Role::Viewer);
    }

    logout_goes_to_the_provider_and_back(lab) {
        let ann = lab.accepts().await;
        let url = lab.flow.logout_url(&lab.known, Some(&ann.id_token)).await.expect("it has such a place");
        assert!(url.starts_with(&format!("{}/logout?", lab.provider.issuer())));
        assert_eq!(parameter(&url, "id_token_hint").map(String::into_bytes).as_deref(), Some(ann.id_token.expose()));
        assert_eq!(parameter(&url, "post_logout_redirect_uri"), Some(format!("{PUBLIC_URL}/login")));
        assert_eq!(parameter(&url, "client_id").as_deref(), Some(HostileProvider::CLIENT_ID));
    }
}

#[test]
fn every_reason_to_have_no_role_is_a_case() {
    let reasons = [NoRole::Missing, NoRole::WrongType, NoRole::Empty, NoRole::TooMany, NoRole::NoMatch];
    let codes: BTreeSet<&str> = reasons.map(NoRole::code).into();
    assert_eq!(codes.len(), reasons.len());
}

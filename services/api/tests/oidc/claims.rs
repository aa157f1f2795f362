//! What an ID token says about itself, properly signed: each wrong claim is refused by its own name.

use serde_json::{Value, json};
use testkit::HostileProvider;

use crate::lab::Lab;

fn set(lab: &Lab, name: &'static str, value: Value) {
    lab.provider.claims(move |claims| claims[name] = value.clone());
}

fn without(lab: &Lab, name: &'static str) {
    lab.provider.claims(move |claims| {
        claims.as_object_mut().expect("an object").remove(name);
    });
}

/// The time of issue, and so many seconds.
fn shifted(lab: &Lab, name: &'static str, seconds: i64) {
    lab.provider.claims(move |claims| claims[name] = (claims["iat"].as_i64().expect("a time") + seconds).into());
}

crate::cases! {
    wrong_issuer(lab) {
        set(&lab, "iss", json!("https://evil.example"));
        lab.refuses("issuer_wrong").await;
    }

    issuer_with_a_slash_more(lab) {
        let issuer = format!("{}/", lab.provider.issuer());
        set(&lab, "iss", json!(issuer));
        lab.refuses("issuer_wrong").await;
    }

    missing_issuer(lab) {
        without(&lab, "iss");
        lab.refuses("issuer_wrong").await;
    }

    wrong_audience(lab) {
        set(&lab, "aud", json!("another"));
        lab.refuses("audience_wrong").await;
    }

    missing_audience(lab) {
        without(&lab, "aud");
        lab.refuses("audience_missing").await;
    }

    empty_audience(lab) {
        set(&lab, "aud", json!([]));
        lab.refuses("audience_missing").await;
    }

    audience_of_a_wrong_type(lab) {
        set(&lab, "aud", json!({ "sluice": true }));
        lab.refuses("audience_missing").await;
    }

    many_audiences_without_authorized_party(lab) {
        set(&lab, "aud", json!([HostileProvider::CLIENT_ID, "another"]));
        lab.refuses("authorized_party_missing").await;
    }

    many_audiences_and_a_foreign_authorized_party(lab) {
        lab.provider.claims(|claims| {
            claims["aud"] = json!([HostileProvider::CLIENT_ID, "another"]);
            claims["azp"] = json!("another");
        });
        lab.refuses("authorized_party_wrong").await;
    }

    foreign_authorized_party(lab) {
        set(&lab, "azp", json!("another"));
        lab.refuses("authorized_party_wrong").await;
    }

    many_audiences_and_we_are_the_authorized_party(lab) {
        lab.provider.claims(|claims| {
            claims["aud"] = json!(["another", HostileProvider::CLIENT_ID]);
            claims["azp"] = json!(HostileProvider::CLIENT_ID);
        });
        lab.accepts().await;
    }

    missing_subject(lab) {
        without(&lab, "sub");
        lab.refuses("subject_missing").await;
    }

    empty_subject(lab) {
        set(&lab, "sub", json!(""));
        lab.refuses("subject_missing").await;
    }

    subject_of_a_wrong_type(lab) {
        set(&lab, "sub", json!(7));
        lab.refuses("subject_missing").await;
    }

    huge_subject(lab) {
        set(&lab, "sub", json!("x".repeat(256)));
        lab.refuses("subject_too_long").await;
    }

    missing_issue_time(lab) {
        without(&lab, "iat");
        lab.refuses("issued_at_missing").await;
    }

    issue_time_of_a_wrong_type(lab) {
        set(&lab, "iat", json!("now"));
        lab.refuses("issued_at_missing").await;
    }

    issued_in_the_future(lab) {
        shifted(&lab, "iat", 300);
        lab.refuses("issued_in_future").await;
    }

    issued_before_the_sign_in_began(lab) {
        shifted(&lab, "iat", -300);
        lab.refuses("issued_before_sign_in").await;
    }

    not_good_yet(lab) {
        let good_from = runtime::clock::now().timestamp() + 300;
        set(&lab, "nbf", json!(good_from));
        lab.refuses("not_yet_good").await;
    }

    not_good_before_a_wrong_type(lab) {
        set(&lab, "nbf", json!("now"));
        lab.refuses("id_token_malformed").await;
    }

    good_from_a_moment_on(lab) {
        let good_from = runtime::clock::now().timestamp() + 30;
        set(&lab, "nbf", json!(good_from));
        lab.accepts().await;
    }

    expired(lab) {
        shifted(&lab, "exp", -120);
        lab.refuses("expired").await;
    }

    missing_expiry(lab) {
        without(&lab, "exp");
        lab.refuses("expiry_missing").await;
    }

    expiry_beyond_all_time(lab) {
        set(&lab, "exp", json!(1e300));
        lab.refuses("id_token_malformed").await;
    }

    clocks_that_differ_a_little(lab) {
        lab.provider.claims(|claims| {
            let now = claims["iat"].as_i64().expect("a time");
            claims["iat"] = (now + 30).into();
            claims["exp"] = (now - 30).into();
        });
        lab.accepts().await;
    }

    bad_nonce(lab) {
        set(&lab, "nonce", json!("another"));
        lab.refuses("nonce_wrong").await;
    }

    missing_nonce(lab) {
        without(&lab, "nonce");
        lab.refuses("nonce_missing").await;
    }

    hash_of_another_access_token(lab) {
        set(&lab, "at_hash", json!("MTIzNDU2Nzg5MDEyMzQ1Ng"));
        lab.refuses("access_token_hash").await;
    }
}

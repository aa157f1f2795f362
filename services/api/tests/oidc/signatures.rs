//! Who signed an ID token, and with what.

use std::sync::Arc;

use domain::sso::Algorithm;
use serde_json::json;
use testkit::{Fault, HostileProvider, Leg, Signing};

use crate::lab::{Lab, flow, refused};

/// Its last byte, changed.
fn corrupt(token: &mut String) {
    let last = token.split_off(token.len() - 4);
    token.push_str(if last == "AAAA" { "QQQQ" } else { "AAAA" });
}

/// `count` sign-ins with keys that nobody has published.
async fn flood(lab: &Lab, count: usize) {
    for _ in 0..count {
        lab.refuses("key_unknown").await;
    }
}

crate::cases! {
    algorithm_none(lab) {
        lab.provider.sign(Signing::None);
        lab.refuses("algorithm_none").await;
    }

    algorithm_none_in_another_case(lab) {
        lab.provider.sign(Signing::None);
        lab.provider.header(|header| header["alg"] = json!("NoNe"));
        lab.refuses("algorithm_none").await;
    }

    signature_cut_away(lab) {
        lab.provider.id_token(|token| token.truncate(token.rfind('.').expect("a dot") + 1));
        lab.refuses("signature_bad").await;
    }

    bad_rs256_signature(lab) {
        lab.provider.id_token(corrupt);
        lab.refuses("signature_bad").await;
    }

    bad_es256_signature(lab) {
        lab.provider.sign(Signing::Es256);
        lab.provider.id_token(corrupt);
        lab.refuses("signature_bad").await;
    }

    bad_eddsa_signature(lab) {
        lab.provider.sign(Signing::EdDsa);
        lab.provider.id_token(corrupt);
        lab.refuses("signature_bad").await;
    }

    changed_after_it_was_signed(lab) {
        lab.provider.id_token(|token| {
            let signature = token.split_off(token.rfind('.').expect("a dot"));
            // Another letter in the middle of the claims.
            let claims = token.find('.').expect("a dot");
            let place = claims + 20;
            let other = if token.as_bytes()[place] == b'Q' { "R" } else { "Q" };
            token.replace_range(place..=place, other);
            token.push_str(&signature);
        });
        let code = refused(lab.sign_in().await);
        assert!(["signature_bad", "id_token_malformed", "issuer_wrong"].contains(&code.as_str()), "{code}");
    }

    keyed_with_the_public_key(lab) {
        lab.provider.sign(Signing::Hs256WithPublicKey);
        lab.refuses("algorithm_refused").await;
    }

    keyed_with_the_client_secret(lab) {
        lab.provider.sign(Signing::Hs256WithSecret);
        lab.refuses("algorithm_refused").await;
    }

    keyed_with_a_secret_key_that_it_publishes(lab) {
        lab.provider.sign(Signing::Hs256WithSecret);
        lab.provider.keys(|set| *set = json!({ "keys": [{ "kty": "oct", "kid": "rsa-0", "k": "czNjcjp0" }] }));
        lab.refuses("keys_none").await;
    }

    algorithm_that_the_settings_leave_out(lab) {
        let mut lab = lab;
        lab.known.settings.algorithms = [Algorithm::Es256].into();
        lab.refuses("algorithm_refused").await;
        lab.provider.sign(Signing::Es256);
        lab.accepts().await;
    }

    algorithm_of_another_kind_of_key(lab) {
        // An RSA key's name over a signature of a P-256 key.
        lab.provider.sign(Signing::Es256);
        lab.provider.header(|header| header["kid"] = json!("rsa-0"));
        lab.refuses("key_unknown").await;
    }

    algorithm_that_nobody_knows(lab) {
        lab.provider.header(|header| header["alg"] = json!("XY256"));
        lab.refuses("algorithm_refused").await;
    }

    critical_header(lab) {
        lab.provider.header(|header| {
            header["crit"] = json!(["exp"]);
            header["exp"] = json!(1);
        });
        lab.refuses("id_token_unsupported").await;
    }

    access_token_as_id_token(lab) {
        lab.provider.header(|header| header["typ"] = json!("at+jwt"));
        lab.refuses("id_token_unsupported").await;
    }

    key_in_the_header(lab) {
        // Whoever believed it would take any key for the provider's.
        lab.provider.header(|header| {
            header["kid"] = json!("mine");
            header["jwk"] = json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB" });
            header["jku"] = json!("https://evil.example/keys");
        });
        lab.refuses("key_unknown").await;
    }

    unknown_key(lab) {
        lab.provider.header(|header| header["kid"] = json!("another"));
        lab.refuses("key_unknown").await;
        assert_eq!(lab.provider.hits(Leg::Keys), 2, "asked once more, for there may be new ones");
    }

    no_key_named_among_several(lab) {
        lab.provider.keys(|set| {
            let mut other = set["keys"][0].clone();
            other["kid"] = json!("other");
            set["keys"].as_array_mut().expect("keys").push(other);
        });
        lab.provider.header(|header| {
            header.as_object_mut().expect("an object").remove("kid");
        });
        lab.refuses("key_ambiguous").await;
    }

    two_keys_of_one_name(lab) {
        lab.provider.keys(|set| {
            let key = set["keys"][0].clone();
            set["keys"].as_array_mut().expect("keys").push(key);
        });
        lab.refuses("key_ambiguous").await;
    }

    weak_key(lab) {
        // 1024 bits.
        lab.provider.keys(|set| *set = json!({ "keys": [
            { "kty": "RSA", "kid": "rsa-0", "e": "AQAB", "n": format!("v{}", "w".repeat(170)) },
        ]}));
        lab.refuses("keys_none").await;
    }

    key_for_encryption(lab) {
        lab.provider.keys(|set| {
            for key in set["keys"].as_array_mut().expect("keys") {
                key["use"] = json!("enc");
            }
        });
        lab.refuses("keys_none").await;
    }

    key_rotation(lab) {
        let before = lab.accepts().await;
        lab.provider.rotate().expect("new keys");
        let after = lab.accepts().await;
        assert_eq!((before.subject, lab.provider.hits(Leg::Keys)), (after.subject, 2));
        lab.accepts().await;
        assert_eq!(lab.provider.hits(Leg::Keys), 2, "and remembered");
    }

    key_rotation_under_the_old_name(lab) {
        lab.provider.keys(|set| set["keys"][0]["kid"] = json!("the-key"));
        lab.provider.header(|header| header["kid"] = json!("the-key"));
        lab.accepts().await;
        lab.provider.rotate().expect("new keys");
        lab.accepts().await;
    }

    old_key_after_a_rotation(lab) {
        lab.accepts().await;
        lab.provider.rotate().expect("new keys");
        lab.accepts().await;
        lab.provider.header(|header| header["kid"] = json!("rsa-0"));
        lab.refuses("key_unknown").await;
    }

    key_endpoint_flood(lab) {
        lab.accepts().await;
        lab.provider.header(|header| header["kid"] = json!("invented"));
        let most = api::oidc::Limits::default().refetches;
        flood(&lab, 2 * most).await;
        assert_eq!(lab.provider.hits(Leg::Keys), 1 + most, "the provider is not flooded");
        // Those that are known are still good.
        lab.provider.header(|_| {});
        lab.accepts().await;
    }

    key_endpoint_flood_at_once(lab) {
        lab.accepts().await;
        lab.provider.header(|header| header["kid"] = json!("invented"));
        let lab = Arc::new(lab);
        let all = futures::future::join_all((0..30).map(|_| lab.sign_in())).await;
        assert!(all.into_iter().all(|one| refused(one) == "key_unknown"));
        assert!(lab.provider.hits(Leg::Keys) <= 1 + api::oidc::Limits::default().refetches);
    }

    keys_that_are_known_outlive_a_failing_endpoint(lab) {
        lab.accepts().await;
        lab.provider.fail(Leg::Keys, Fault::Status(500));
        lab.provider.header(|header| header["kid"] = json!("another"));
        lab.refuses("keys_status").await;
        lab.provider.header(|_| {});
        lab.accepts().await;
    }

    every_accepted_algorithm(lab) {
        for signing in
            [Signing::Rs256, Signing::Rs512, Signing::Ps256, Signing::Es256, Signing::Es384, Signing::EdDsa]
        {
            lab.provider.sign(signing);
            assert_eq!(lab.accepts().await.subject, HostileProvider::SUBJECT, "{signing:?}");
        }
    }

    encrypted_id_token(lab) {
        lab.provider.id_token(|token| token.push_str(".x.y"));
        lab.refuses("id_token_encrypted").await;
    }

    garbage_for_an_id_token(lab) {
        for garbage in ["", "x", "a.b.c", "...", "\u{0}", "e30.e30.e30", &"x.".repeat(20_000)] {
            let garbage = garbage.to_owned();
            lab.provider.id_token(move |token| token.clone_from(&garbage));
            lab.refuses("id_token_malformed").await;
        }
    }

    issuer_that_changed_its_keys_while_we_were_away(lab) {
        lab.provider.rotate().expect("new keys");
        // Another process of ours, which knows nothing.
        let mut lab = lab;
        lab.flow = flow(&lab.log, api::oidc::Limits::default(), "127.0.0.1");
        lab.accepts().await;
    }
}

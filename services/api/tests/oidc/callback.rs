//! What a browser brings back, and from whom; and where it is sent in the end.

use std::time::Duration;

use api::oidc::{Begun, Limits};
use futures::StreamExt;
use testkit::Leg;

use crate::lab::{Lab, parameter, refused, with};

/// A sign-in up to the answer of the provider.
async fn answered(lab: &Lab) -> (Begun, String) {
    let begun = lab.begin().await.expect("begun");
    let query = lab.browse(&begun).await;
    (begun, query)
}

crate::cases! {
    bad_state(lab) {
        let (begun, query) = answered(&lab).await;
        let forged = with(&query, "state", Some("forged"));
        assert_eq!(refused(lab.finish(&begun, &forged).await), "state_unknown");
        assert_eq!(lab.provider.hits(Leg::Token), 0, "the code went nowhere");
    }

    missing_state(lab) {
        let (begun, query) = answered(&lab).await;
        for state in [None, Some("")] {
            assert_eq!(refused(lab.finish(&begun, &with(&query, "state", state)).await), "state_missing");
        }
    }

    state_of_another_browser(lab) {
        let (begun, query) = answered(&lab).await;
        let (other, _) = answered(&lab).await;
        assert_ne!(begun.browser, other.browser);
        assert_eq!(refused(lab.finish(&other, &query).await), "state_of_another_browser");
        assert_eq!(lab.provider.hits(Leg::Token), 0);
        // Whoever tries takes nothing away from the one that began it.
        lab.finish(&begun, &query).await.expect("signed in");
    }

    browser_that_began_nothing(lab) {
        let (_, query) = answered(&lab).await;
        assert_eq!(refused(lab.flow.finish(&lab.known, &query, None).await), "state_of_another_browser");
    }

    replayed_state(lab) {
        let (begun, query) = answered(&lab).await;
        lab.finish(&begun, &query).await.expect("signed in");
        assert_eq!(refused(lab.finish(&begun, &query).await), "state_unknown");
        assert_eq!(lab.provider.hits(Leg::Token), 1);
    }

    state_used_by_several_at_once(lab) {
        let (begun, query) = answered(&lab).await;
        let all = futures::future::join_all((0..8).map(|_| lab.finish(&begun, &query))).await;
        let (good, bad): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
        assert_eq!((good.len(), lab.provider.hits(Leg::Token)), (1, 1));
        assert!(bad.into_iter().all(|one| refused(one) == "state_unknown"));
    }

    state_is_used_up_by_a_failure(lab) {
        let (begun, query) = answered(&lab).await;
        assert_eq!(refused(lab.finish(&begun, &with(&query, "code", Some("wrong"))).await), "code_refused");
        assert_eq!(refused(lab.finish(&begun, &query).await), "state_unknown");
    }

    replayed_code(lab) {
        let (begun, query) = answered(&lab).await;
        lab.finish(&begun, &query).await.expect("signed in");
        let (next, answer) = answered(&lab).await;
        let replayed = with(&answer, "code", parameter(&query, "code").as_deref());
        assert_eq!(refused(lab.finish(&next, &replayed).await), "code_refused");
    }

    code_of_another_sign_in(lab) {
        // Good, unused, and asked for with another verifier: PKCE tells.
        let (_, stolen) = answered(&lab).await;
        let (begun, query) = answered(&lab).await;
        let injected = with(&query, "code", parameter(&stolen, "code").as_deref());
        assert_eq!(refused(lab.finish(&begun, &injected).await), "code_refused");
    }

    missing_code(lab) {
        let (begun, query) = answered(&lab).await;
        assert_eq!(refused(lab.finish(&begun, &with(&query, "code", None)).await), "code_missing");
    }

    parameters_that_come_twice(lab) {
        let (begun, query) = answered(&lab).await;
        for more in ["&state=x", "&code=x", "&iss=x", "&error=a&error=b"] {
            assert_eq!(refused(lab.finish(&begun, &format!("{query}{more}")).await), "callback_malformed", "{more}");
        }
        lab.finish(&begun, &query).await.expect("none of it was used");
    }

    huge_answer_of_the_browser(lab) {
        let (begun, query) = answered(&lab).await;
        let huge = with(&query, "code", Some(&"x".repeat(20_000)));
        assert_eq!(refused(lab.finish(&begun, &huge).await), "callback_malformed");
    }

    issuer_mix_up(lab) {
        lab.provider.callback(|pairs| pairs.retain_mut(|(name, value)| {
            if name == "iss" {
                "https://evil.example".clone_into(value);
            }
            true
        }));
        lab.refuses("issuer_mix_up").await;
        assert_eq!(lab.provider.hits(Leg::Token), 0, "the code went nowhere");
    }

    promised_issuer_is_missing(lab) {
        lab.provider.callback(|pairs| pairs.retain(|(name, _)| name != "iss"));
        lab.refuses("issuer_parameter_missing").await;
        assert_eq!(lab.provider.hits(Leg::Token), 0);
    }

    issuer_that_nobody_promised_may_be_missing(lab) {
        lab.provider.discovery(|document| {
            document.as_object_mut().expect("an object").remove("authorization_response_iss_parameter_supported");
        });
        lab.provider.callback(|pairs| pairs.retain(|(name, _)| name != "iss"));
        lab.accepts().await;
    }

    issuer_that_nobody_promised_must_still_be_right(lab) {
        lab.provider.discovery(|document| document["authorization_response_iss_parameter_supported"] = false.into());
        lab.provider.callback(|pairs| pairs.iter_mut().filter(|(name, _)| name == "iss").for_each(|(_, value)| value.push('/')));
        lab.refuses("issuer_mix_up").await;
    }

    person_who_declines(lab) {
        let (begun, query) = answered(&lab).await;
        let declined = with(&with(&query, "code", None), "error", Some("access_denied"));
        assert_eq!(refused(lab.finish(&begun, &declined).await), "access_denied");
    }

    error_of_the_provider(lab) {
        let (begun, query) = answered(&lab).await;
        // With a code beside it: an error is an error.
        let error = with(&query, "error", Some("server_error<script>alert(1)</script>"));
        let refusal = lab.finish(&begun, &error).await.expect_err("an error");
        assert_eq!(refusal.code(), "provider_error");
        assert!(!refusal.to_string().contains("script"), "what a stranger wrote is not repeated");
    }

    wrong_redirect(lab) {
        // The provider knows us elsewhere, and sends nobody here.
        lab.provider.register("https://elsewhere.example.com/auth/oidc/callback");
        let begun = lab.begin().await.expect("begun");
        assert_eq!(lab.http.get(&begun.location).send().await.expect("an answer").status(), 400);
    }

    code_for_another_redirect(lab) {
        let (begun, query) = answered(&lab).await;
        let mut moved = lab.known.clone();
        moved.public_url = "https://elsewhere.example.com".into();
        assert_eq!(refused(lab.flow.finish(&moved, &query, Some(&begun.browser)).await), "code_refused");
    }

    settings_changed_meanwhile(lab) {
        for change in ["issuer", "client"] {
            let (begun, query) = answered(&lab).await;
            let mut changed = lab.known.clone();
            match change {
                "issuer" => changed.settings.issuer.push('/'),
                _ => changed.settings.client_id.push('2'),
            }
            assert_eq!(refused(lab.flow.finish(&changed, &query, Some(&begun.browser)).await), "settings_changed");
        }
        assert_eq!(lab.provider.hits(Leg::Token), 0, "nobody else is told our secret or the code");
    }

    open_redirects(lab) {
        for evil in ["//evil.example", "https://evil.example", "/\\evil.example", "/%2f/evil.example", "/a\r\nX: y", "x"] {
            assert_eq!(refused(lab.flow.begin(&lab.known, evil, None).await), "return_path_refused", "{evil}");
        }
        assert_eq!(lab.accepts().await.return_to, "/projects/shop");
    }

    forged_browser_value(lab) {
        // One that could be guessed is not taken over.
        for forged in ["", "x", &"0".repeat(63), &"g".repeat(64), &format!("{};x=y", "0".repeat(64))] {
            let begun = lab.flow.begin(&lab.known, "/", Some(forged)).await.expect("begun");
            assert_ne!(begun.browser, forged);
            assert_eq!(begun.browser.len(), 64);
        }
    }

    two_tabs_of_one_browser(lab) {
        let (first, one) = answered(&lab).await;
        let second = lab.flow.begin(&lab.known, "/", Some(&first.browser)).await.expect("begun");
        let two = lab.browse(&second).await;
        assert_eq!(first.browser, second.browser);
        lab.finish(&second, &one).await.expect("the first tab");
        lab.finish(&first, &two).await.expect("the second tab");
    }

    two_processes_of_ours(lab) {
        let (begun, query) = answered(&lab).await;
        let other = crate::lab::flow(&lab.log, Limits::default(), "127.0.0.1");
        other.finish(&lab.known, &query, Some(&begun.browser)).await.expect("any process ends what another began");
    }

    nothing_secret_goes_to_the_browser(lab) {
        let begun = lab.begin().await.expect("begun");
        for name in ["code_verifier", "client_secret"] {
            assert_eq!(parameter(&begun.location, name), None);
        }
        assert_eq!(parameter(&begun.location, "code_challenge_method").as_deref(), Some("S256"));
        let [state, nonce, challenge] =
            ["state", "nonce", "code_challenge"].map(|name| parameter(&begun.location, name).expect(name));
        assert!(state.len() >= 43 && nonce.len() >= 43 && challenge.len() == 43);
        assert!(!begun.location.contains(&begun.browser));
    }
}

#[tokio::test]
async fn a_sign_in_that_takes_too_long_is_over() {
    let lab = Lab::with(Limits { sign_in: Duration::ZERO, ..Limits::default() }).await;
    lab.refuses("state_expired").await;
    assert_eq!(lab.provider.hits(Leg::Token), 0);
}

#[tokio::test]
async fn sign_ins_that_nobody_ends_are_bounded_and_the_newest_stay() {
    const MOST: usize = 10_000;
    let lab = Lab::start().await;
    let bucket = lab.log.bucket("oidc-pending");
    let flood = futures::stream::iter(0..MOST + 50).map(|n| {
        let bucket = bucket.clone();
        async move { bucket.put(&format!("{n:064x}"), "x").await }
    });
    let written = flood.buffer_unordered(64).filter(|done| std::future::ready(done.is_ok())).count().await;
    assert_eq!(written, MOST + 50);
    let (begun, query) = answered(&lab).await;
    assert_eq!(bucket.keys().await.expect("keys").len(), MOST);
    lab.finish(&begun, &query).await.expect("signed in");
}

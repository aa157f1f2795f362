//! A provider that is down, slow, endless or confused at each of the four things that it is asked for.

use api::oidc::Limits;
use serde_json::json;
use testkit::{Fault, Leg};

use crate::lab::{Lab, flow, impatient, refused};

/// Where a provider should be, and is not.
fn dead_end() -> String {
    format!("http://127.0.0.1:{}", testkit::free_port())
}

/// Nobody signs in while one thing goes wrong; and when it is over, they do.
async fn fails(lab: Lab, leg: Leg, fault: Fault, code: &str) {
    lab.provider.fail(leg, fault);
    lab.refuses(code).await;
    assert_eq!(lab.provider.trapped(), 0, "no redirect is followed");
    lab.provider.heal(leg);
    let mut lab = lab;
    // Not in a hurry any more.
    lab.flow = flow(&lab.log, Limits::default(), "127.0.0.1");
    lab.accepts().await;
}

macro_rules! at_each_leg {
    ($($fault:expr, $code:literal: $discovery:ident $keys:ident $token:ident $userinfo:ident)*) => {
        pub(crate) const FAULTS: &[&str] = &[
            $(stringify!($discovery), stringify!($keys), stringify!($token), stringify!($userinfo)),*
        ];
        $(
            at_each_leg!(@ $discovery, Discovery, "discovery", $fault, $code);
            at_each_leg!(@ $keys, Keys, "keys", $fault, $code);
            at_each_leg!(@ $token, Token, "token", $fault, $code);
            at_each_leg!(@ $userinfo, Userinfo, "userinfo", $fault, $code);
        )*
    };
    (@ $name:ident, $leg:ident, $what:literal, $fault:expr, $code:literal) => {
        #[tokio::test]
        async fn $name() {
            let fault = $fault;
            let limits = if fault == Fault::Hang {
                impatient()
            } else {
                Limits { remember_failure: std::time::Duration::ZERO, ..Limits::default() }
            };
            fails(Lab::with(limits).await, Leg::$leg, fault, concat!($what, "_", $code)).await;
        }
    };
}

at_each_leg! {
    Fault::Hang, "timeout": discovery_hangs keys_hang token_hangs userinfo_hangs
    Fault::CutOff, "broken_off": discovery_breaks_off keys_break_off token_breaks_off userinfo_breaks_off
    Fault::Status(500), "status": discovery_is_down keys_are_down token_is_down userinfo_is_down
    Fault::Endless, "too_large": discovery_is_endless keys_are_endless token_is_endless userinfo_is_endless
    Fault::Garbage, "garbage": discovery_is_garbage keys_are_garbage token_is_garbage userinfo_is_garbage
    Fault::Redirect, "redirected": discovery_redirects keys_redirect token_redirects userinfo_redirects
}

pub(crate) use named::NAMES;

mod named {
    use super::*;

    crate::cases! {
        nobody_listens_at_the_issuer(lab) {
            let mut lab = lab;
            lab.known.settings.issuer = dead_end();
            assert_eq!(refused(lab.begin().await), "discovery_unreachable");
        }

        nobody_listens_where_the_keys_are(lab) {
            let url = dead_end();
            lab.provider.discovery(move |document| document["jwks_uri"] = json!(url));
            lab.refuses("keys_unreachable").await;
        }

        nobody_listens_where_the_tokens_are(lab) {
            let url = dead_end();
            lab.provider.discovery(move |document| document["token_endpoint"] = json!(url));
            lab.refuses("token_unreachable").await;
        }

        nobody_listens_where_userinfo_is(lab) {
            let url = dead_end();
            lab.provider.discovery(move |document| document["userinfo_endpoint"] = json!(url));
            lab.refuses("userinfo_unreachable").await;
        }

        discovery_issuer_mismatch(lab) {
            lab.provider.discovery(|document| document["issuer"] = json!("https://evil.example"));
            lab.refuses("discovery_issuer").await;
        }

        discovery_issuer_with_a_slash_more(lab) {
            lab.provider.discovery(|document| {
                document["issuer"] = json!(format!("{}/", document["issuer"].as_str().expect("an issuer")));
            });
            lab.refuses("discovery_issuer").await;
        }

        discovery_without_issuer(lab) {
            lab.provider.discovery(|document| document["issuer"] = json!(null));
            lab.refuses("discovery_issuer").await;
        }

        discovery_of_wrong_types(lab) {
            lab.provider.discovery(|document| document["token_endpoint"] = json!(["x"]));
            lab.refuses("discovery_garbage").await;
        }

        discovery_without_an_endpoint(lab) {
            for name in ["authorization_endpoint", "token_endpoint", "jwks_uri"] {
                lab.provider.discovery(move |document| document[name] = json!(null));
                lab.refuses("endpoint_missing").await;
            }
        }

        discovery_that_leads_elsewhere(lab) {
            for evil in ["javascript:alert(1)", "file:///etc/passwd", "http://u:p@127.0.0.1/", "x", "data:,x", "http://127.0.0.1/#x"] {
                lab.provider.discovery(move |document| document["authorization_endpoint"] = json!(evil));
                lab.refuses("endpoint_insecure").await;
            }
        }

        no_algorithm_in_common(lab) {
            lab.provider.discovery(|document| {
                document["id_token_signing_alg_values_supported"] = json!(["none", "HS256", "ES512"]);
            });
            lab.refuses("algorithm_none_in_common").await;
        }

        no_pkce(lab) {
            lab.provider.discovery(|document| document["code_challenge_methods_supported"] = json!(["plain"]));
            lab.refuses("pkce_unsupported").await;
        }

        provider_that_tells_only_what_it_must(lab) {
            lab.provider.discovery(|document| {
                let all = document.as_object_mut().expect("an object");
                let must = ["issuer", "authorization_endpoint", "token_endpoint", "jwks_uri"];
                all.retain(|name, _| must.contains(&name.as_str()));
            });
            lab.accepts().await;
            assert_eq!(lab.flow.logout_url(&lab.known, None).await, None);
        }

        keys_without_end(lab) {
            lab.provider.keys(|set| {
                let key = set["keys"][0].clone();
                set["keys"] = json!(vec![key; 101]);
            });
            lab.refuses("keys_garbage").await;
        }

        keys_of_kinds_that_nobody_knows_beside_good_ones(lab) {
            lab.provider.keys(|set| {
                let keys = set["keys"].as_array_mut().expect("keys");
                for odd in [json!({ "kty": "LMS" }), json!("x"), json!(null), json!({ "kty": "RSA", "n": 1 })] {
                    keys.insert(0, odd);
                }
            });
            lab.accepts().await;
        }

        local_addresses_are_refused(lab) {
            let mut lab = lab;
            lab.flow = flow(&lab.log, Limits::default(), "");
            assert_eq!(refused(lab.begin().await), "discovery_address_refused");
            assert_eq!(lab.provider.hits(Leg::Discovery), 0);
        }

        local_addresses_behind_a_name_are_refused(lab) {
            let mut lab = lab;
            lab.flow = flow(&lab.log, Limits::default(), "");
            let issuer = lab.provider.issuer().replace("127.0.0.1", "localhost");
            lab.known.settings.issuer = issuer;
            assert_eq!(refused(lab.begin().await), "discovery_address_refused");
            assert_eq!(lab.provider.hits(Leg::Discovery), 0);
        }

        metadata_services_are_refused_at_every_leg(lab) {
            let there = "http://169.254.169.254/latest/meta-data/";
            let mut lab = lab;
            for (name, leg) in [("jwks_uri", "keys"), ("token_endpoint", "token"), ("userinfo_endpoint", "userinfo")] {
                // One that remembers nothing.
                lab.flow = flow(&lab.log, Limits::default(), "127.0.0.0/8");
                lab.provider.discovery(move |document| document[name] = json!(there));
                lab.refuses(&format!("{leg}_address_refused")).await;
            }
        }

        client_that_the_provider_does_not_know(lab) {
            let mut lab = lab;
            lab.known.secret = Some(eventlog::Secret::new("wrong"));
            lab.refuses("client_refused").await;
            lab.known.secret = None;
            lab.refuses("client_refused").await;
        }

        secret_in_the_body_where_the_provider_wants_it_there(lab) {
            lab.provider.discovery(|document| {
                document["token_endpoint_auth_methods_supported"] = json!(["client_secret_post"]);
            });
            lab.accepts().await;
        }

        token_endpoint_that_is_elsewhere(lab) {
            let url = format!("{}/oauth/token", lab.provider.issuer());
            lab.provider.discovery(move |document| document["token_endpoint"] = json!(url));
            lab.refuses("token_status").await;
        }

        answer_without_id_token(lab) {
            lab.provider.token(|answer| {
                answer.as_object_mut().expect("an object").remove("id_token");
            });
            lab.refuses("id_token_missing").await;
        }

        token_of_a_kind_that_nobody_knows(lab) {
            lab.provider.token(|answer| answer["token_type"] = json!("mac"));
            lab.refuses("token_type").await;
        }

        access_token_that_breaks_out_of_its_header(lab) {
            for evil in ["x\r\nHost: evil.example", "x y", "", "\u{e9}"] {
                lab.provider.claims(|claims| {
                    claims.as_object_mut().expect("an object").remove("at_hash");
                });
                lab.provider.token(move |answer| answer["access_token"] = json!(evil));
                lab.refuses("access_token_unusable").await;
            }
        }

        swapped_access_token(lab) {
            lab.provider.token(|answer| answer["access_token"] = json!("of somebody else"));
            lab.refuses("access_token_hash").await;
        }

        provider_that_is_away_is_not_asked_by_everybody(lab) {
            let mut lab = lab;
            lab.flow = flow(&lab.log, Limits::default(), "127.0.0.1");
            lab.provider.fail(Leg::Discovery, Fault::Status(503));
            let all = futures::future::join_all((0..20).map(|_| lab.begin())).await;
            assert!(all.into_iter().all(|one| refused(one) == "discovery_status"));
            assert!(lab.provider.hits(Leg::Discovery) <= 2, "{}", lab.provider.hits(Leg::Discovery));
        }
    }
}

#[tokio::test]
async fn too_many_at_once_are_sent_away() {
    let lab = Lab::with(Limits { at_once: 1, ..impatient() }).await;
    lab.provider.fail(Leg::Discovery, Fault::Hang);
    let all = futures::future::join_all((0..3).map(|_| lab.begin())).await;
    let mut codes: Vec<String> = all.into_iter().map(refused).collect();
    codes.sort();
    assert_eq!(codes, ["busy", "busy", "discovery_timeout"]);
}

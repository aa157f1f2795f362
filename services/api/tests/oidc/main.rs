//! Sign-in through a provider, from outside: one that is hostile in every way that it knows, each a case with a name of
//! its own, and a certified one.

mod browser;
mod lab;

mod callback;
mod certified;
mod claims;
mod legs;
mod person;
mod probe;
mod settings;
mod signatures;

use std::collections::BTreeSet;

/// Cases with a name each, which a hostile provider or browser may try.
#[macro_export]
macro_rules! cases {
    ($($name:ident($lab:ident) $body:block)*) => {
        pub(crate) const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[tokio::test]
            async fn $name() {
                let $lab = $crate::lab::Lab::start().await;
                $body
            }
        )*
    };
}

#[test]
fn there_are_more_than_forty_five_hostile_cases() {
    let all =
        [callback::NAMES, claims::NAMES, legs::FAULTS, legs::NAMES, person::NAMES, probe::NAMES, signatures::NAMES]
            .concat();
    let different: BTreeSet<&str> = all.iter().copied().collect();
    assert_eq!(different.len(), all.len(), "each has a name of its own");
    assert!(all.len() >= 45, "{} cases", all.len());
}

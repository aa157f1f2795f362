//! Why somebody is not signed in. Every cause has a code of its own, for scripts and events, and a sentence for people
//! that says what to do next. Nothing that a stranger or the provider wrote is repeated.

use std::sync::Arc;

use domain::sso::NoRole;

use super::Trouble;

/// What was asked of the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    Discovery,
    Keys,
    Token,
    Userinfo,
}

impl Leg {
    fn code(self) -> &'static str {
        match self {
            Self::Discovery => "discovery",
            Self::Keys => "keys",
            Self::Token => "token",
            Self::Userinfo => "userinfo",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Discovery => "about itself",
            Self::Keys => "for its keys",
            Self::Token => "for your identity",
            Self::Userinfo => "about you",
        }
    }
}

macro_rules! refusals {
    ($($name:ident $code:literal $words:literal)*) => {
        /// Why somebody is not signed in.
        #[derive(Debug, Clone, thiserror::Error)]
        pub enum Refusal {
            $(#[error($words)] $name,)*
            #[error("the provider could not be asked {}: {trouble}", .leg.words())]
            Provider { leg: Leg, trouble: Trouble },
            #[error(transparent)]
            Roles(#[from] NoRole),
            /// Our own fault.
            #[error("signing in does not work at the moment: try again")]
            Log(#[from] Arc<eventlog::Error>),
        }

        impl Refusal {
            /// Whether this ends a sign-in that somebody began here. Anybody can bring about the others at will, as often
            /// as they like.
            pub fn ends_a_sign_in(&self) -> bool {
                !matches!(
                    self,
                    Self::ReturnPath
                        | Self::Busy
                        | Self::CallbackMalformed
                        | Self::StateMissing
                        | Self::StateUnknown
                        | Self::OtherBrowser
                        | Self::Log(_)
                )
            }

            /// Stable, for scripts.
            pub fn code(&self) -> String {
                match self {
                    $(Self::$name => $code.to_owned(),)*
                    Self::Provider { leg, trouble } => format!("{}_{}", leg.code(), trouble.code()),
                    Self::Roles(reason) => reason.code().to_owned(),
                    Self::Log(_) => "log_unavailable".to_owned(),
                }
            }
        }
    };
}

refusals! {
    ReturnPath "return_path_refused" "the page to come back to must be a path on this server"
    Busy "busy" "too many people sign in at once: try again in a moment"

    // What the browser brings back.
    CallbackMalformed "callback_malformed" "this answer of the provider cannot be read: sign in again"
    StateMissing "state_missing" "this is no answer to a sign-in that began here: sign in again"
    StateUnknown "state_unknown" "this sign-in is over, was used before, or never began here: sign in again"
    StateExpired "state_expired" "this sign-in took too long: sign in again"
    OtherBrowser "state_of_another_browser" "this sign-in began in another browser: sign in again in this one"
    SettingsChanged "settings_changed" "the settings of the provider changed meanwhile: sign in again"
    MixUp "issuer_mix_up" "this answer comes from another provider than the one that was asked: sign in again"
    IssuerParameterMissing "issuer_parameter_missing" "the provider promises to name itself in its answer, and does not"
    AccessDenied "access_denied" "the provider did not let you in"
    ProviderError "provider_error" "the provider answered with an error: its log says more"
    CodeMissing "code_missing" "the provider's answer lacks the code: sign in again"

    // What the provider says about itself.
    DiscoveryIssuer "discovery_issuer" "the provider calls itself otherwise than the settings: write the issuer exactly as it does"
    EndpointMissing "endpoint_missing" "the provider does not say where to sign in, where to ask for tokens, or where its keys are"
    EndpointInsecure "endpoint_insecure" "the provider names an address that is not encrypted, or is none"
    NoAlgorithm "algorithm_none_in_common" "the provider signs in no way that the settings accept"
    NoPkce "pkce_unsupported" "the provider does not take PKCE with S256, which is always used"
    NoKeys "keys_none" "the provider has no key that can be used: RSA of 2048 to 4096 bits, P-256, P-384 or Ed25519"

    // What it answers to the code.
    CodeRefused "code_refused" "the provider does not take its code: it was used before, is too old, or was meant for another address"
    ClientRefused "client_refused" "the provider does not take us: check the client id and the client secret in the settings"
    TokenRefused "token_refused" "the provider refuses to say who you are: its log says more"
    TokenType "token_type" "the provider gives a token of a kind that is not known here"
    AccessTokenUnusable "access_token_unusable" "the provider gives an access token that cannot be sent"
    IdTokenMissing "id_token_missing" "the provider does not say who you are: let it grant the scope openid"

    // The ID token.
    Malformed "id_token_malformed" "the ID token cannot be read"
    Encrypted "id_token_encrypted" "the ID token is encrypted: let the provider only sign it"
    Unsupported "id_token_unsupported" "the ID token is of a kind that is not known here"
    Unsigned "algorithm_none" "the ID token is not signed"
    AlgorithmRefused "algorithm_refused" "the ID token is signed in a way that the settings do not accept"
    KeyUnknown "key_unknown" "the ID token is signed with a key that the provider does not publish"
    KeyAmbiguous "key_ambiguous" "the ID token does not say which of the provider's keys signed it"
    KeyUnusable "key_unusable" "the ID token is signed with a key that cannot be used"
    Signature "signature_bad" "the signature of the ID token is wrong"
    Issuer "issuer_wrong" "the ID token comes from another issuer"
    AudienceMissing "audience_missing" "the ID token does not say for whom it is"
    Audience "audience_wrong" "the ID token is for somebody else"
    PartyMissing "authorized_party_missing" "the ID token is for several and does not say who asked for it"
    Party "authorized_party_wrong" "the ID token was asked for by somebody else"
    SubjectMissing "subject_missing" "the ID token does not say who you are"
    SubjectTooLong "subject_too_long" "the ID token names you with more than 255 characters"
    IssuedAtMissing "issued_at_missing" "the ID token does not say when it was issued"
    IssuedInFuture "issued_in_future" "the ID token comes from the future: compare the clocks here and at the provider"
    NotYet "not_yet_good" "the ID token is not good yet: compare the clocks here and at the provider"
    Stale "issued_before_sign_in" "the ID token is older than this sign-in: compare the clocks here and at the provider"
    ExpiryMissing "expiry_missing" "the ID token does not say how long it is good"
    Expired "expired" "the ID token is no longer good: compare the clocks here and at the provider"
    NonceMissing "nonce_missing" "the ID token does not belong to a sign-in"
    Nonce "nonce_wrong" "the ID token belongs to another sign-in"
    AccessTokenHash "access_token_hash" "the ID token and the access token do not belong together"

    // What it says about the person.
    UserinfoSubjectMissing "userinfo_subject_missing" "what the provider says about you does not say about whom"
    UserinfoSubject "userinfo_subject_wrong" "what the provider says is about somebody else"
    UserinfoSigned "userinfo_signed" "the provider signs or encrypts what it says about you: let it send plain JSON"

    // What is known of the person here.
    NameTaken "name_taken" "the name that the provider gives you is somebody else's here: ask an administrator"
    Disabled "user_disabled" "you are locked out here: ask an administrator"
    LastAdministrator "last_administrator" "the provider no longer makes you an administrator, and there is no other one here: make somebody else an administrator first"
}

impl From<eventlog::Error> for Refusal {
    fn from(error: eventlog::Error) -> Self {
        Self::Log(Arc::new(error))
    }
}

impl Leg {
    pub(super) fn failed(self, trouble: Trouble) -> Refusal {
        Refusal::Provider { leg: self, trouble }
    }
}

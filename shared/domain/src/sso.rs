//! Sign-in through an outside provider (OpenID Connect): how it is reached, and what its claims are worth here. One
//! aggregate, for there is one provider. The client secret lies in the vault; events hold where, and which version of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{Aggregate, FieldError, Key, Role, Slug, image};

/// Names reflect the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    #[serde(rename = "configured.v1")]
    Configured { settings: Settings },
    #[serde(rename = "secret.set.v1")]
    SecretSet {
        /// Key in the vault.
        secret: String,
        /// Revision of that key.
        version: u64,
    },
    #[serde(rename = "secret.removed.v1")]
    SecretRemoved {},
    /// As if nothing had ever been said about it.
    #[serde(rename = "removed.v1")]
    Removed {},
}

/// How a provider is reached, and what its claims are worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ProviderSettings)]
pub struct Settings {
    /// Exactly as the provider writes it in its own documents, with or without a slash at the end. Another issuer ends
    /// the client secret, which was meant for the one before.
    #[schema(example = "https://id.example.com/realms/main")]
    pub issuer: String,
    /// What the provider calls us. Another one ends the client secret, too.
    #[schema(example = "sluice")]
    pub client_id: String,
    /// What is asked for; `openid` always is.
    #[serde(default = "usual_scopes")]
    pub scopes: Vec<String>,
    /// The claim that holds a list of roles or groups. Dots lead into nested claims: `realm_access.roles`.
    #[serde(default = "usual_claim")]
    pub roles_claim: String,
    /// What each value in that list is worth. Whoever has none of these values may not sign in.
    #[serde(default = "usual_roles")]
    pub role_map: BTreeMap<String, Mapped>,
    /// Signatures that are accepted.
    #[serde(default = "Algorithm::all")]
    pub algorithms: BTreeSet<Algorithm>,
    /// On the button of the sign-in page.
    #[serde(default = "usual_label")]
    #[schema(example = "Sign in with Example")]
    pub label: String,
}

/// A role, everywhere or in some projects only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mapped {
    pub role: Role,
    /// Everywhere where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub projects: Option<BTreeSet<Slug>>,
}

/// By their names in JOSE. What proves nothing (`none`) and what anybody who can check it could also have made (`HS256`
/// and its like) has no place here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    const ALL: [(Self, &str); 9] = [
        (Self::Rs256, "RS256"),
        (Self::Rs384, "RS384"),
        (Self::Rs512, "RS512"),
        (Self::Ps256, "PS256"),
        (Self::Ps384, "PS384"),
        (Self::Ps512, "PS512"),
        (Self::Es256, "ES256"),
        (Self::Es384, "ES384"),
        (Self::EdDsa, "EdDSA"),
    ];

    pub fn all() -> BTreeSet<Self> {
        Self::ALL.into_iter().map(|(algorithm, _)| algorithm).collect()
    }

    /// The one that JOSE calls `name`; none for what is not accepted here.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| *known == name).map(|(algorithm, _)| algorithm)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::ALL.iter().find(|(algorithm, _)| algorithm == self);
        f.write_str(known.map_or("", |(_, name)| name))
    }
}

pub fn usual_scopes() -> Vec<String> {
    ["openid", "profile", "email"].map(str::to_owned).to_vec()
}

pub fn usual_claim() -> String {
    "roles".into()
}

/// Each role by its own name.
pub fn usual_roles() -> BTreeMap<String, Mapped> {
    let everywhere = |role: Role| (role.to_string(), Mapped { role, projects: None });
    [Role::Viewer, Role::Operator, Role::Admin].map(everywhere).into()
}

pub fn usual_label() -> String {
    "Single sign-on".into()
}

/// Why nobody signs in with these claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRole {
    #[error("the provider says nothing about your roles: let it send the claim that the settings name")]
    Missing,
    #[error("the provider sends your roles in a form that cannot be read: the claim must be a list of texts")]
    WrongType,
    #[error("the provider says that you have no roles")]
    Empty,
    #[error("the provider sends more roles than anybody can have: let it send only those that matter here")]
    TooMany,
    #[error("none of your roles at the provider is worth anything here: ask an administrator")]
    NoMatch,
}

impl NoRole {
    /// Stable, for scripts.
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing => "roles_missing",
            Self::WrongType => "roles_wrong_type",
            Self::Empty => "roles_empty",
            Self::TooMany => "roles_too_many",
            Self::NoMatch => "roles_no_match",
        }
    }
}

/// Values in a claim, and characters in one of them, beyond which it is no list of roles.
const MOST_ROLES: usize = 1_000;
const LONGEST_ROLE: usize = 256;

impl Settings {
    /// With everything as usual.
    pub fn new(issuer: impl Into<String>, client_id: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            client_id: client_id.into(),
            scopes: usual_scopes(),
            roles_claim: usual_claim(),
            role_map: usual_roles(),
            algorithms: Algorithm::all(),
            label: usual_label(),
        }
    }

    /// Everything that is wrong with them.
    pub fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut require = |good: bool, field: String, problem: &str| {
            if !good {
                errors.push(FieldError { field, problem: problem.to_owned() });
            }
        };
        require(
            good_issuer(&self.issuer),
            "issuer".into(),
            "must be the provider's https:// address as it writes it itself, without user, query and fragment, such as \
             https://id.example.com; http:// is for a provider on this machine only",
        );
        let printable = |text: &str| text.bytes().all(|b| (0x20..0x7f).contains(&b));
        require(
            (1..=256).contains(&self.client_id.len()) && printable(&self.client_id),
            "client_id".into(),
            "must be 1 to 256 printable ASCII characters",
        );
        let good_scope = |scope: &String| {
            (1..=100).contains(&scope.len())
                && scope.bytes().all(|b| (0x21..0x7f).contains(&b) && !b"\"\\".contains(&b))
        };
        require(
            self.scopes.len() <= 50 && self.scopes.iter().all(good_scope),
            "scopes".into(),
            "must be at most 50, each 1 to 100 printable ASCII characters without blank, quote and backslash",
        );
        let plain = |text: &str, most: usize| {
            (1..=most).contains(&text.chars().count()) && !text.chars().any(char::is_control) && text.trim() == text
        };
        require(
            plain(&self.roles_claim, 200),
            "roles_claim".into(),
            "must be the name of a claim, of 1 to 200 characters",
        );
        require(
            (1..=200).contains(&self.role_map.len()),
            "role_map".into(),
            "must say for 1 to 200 values of the claim what they are worth: else nobody could sign in",
        );
        for (value, mapped) in &self.role_map {
            let field = format!("role_map.{}", value.chars().take(60).collect::<String>());
            require(
                plain(value, LONGEST_ROLE),
                field.clone(),
                "values have 1 to 256 characters, none at the ends blank",
            );
            let projects = mapped.projects.as_ref().map_or(1, BTreeSet::len);
            require((1..=100).contains(&projects), field, "name 1 to 100 projects, or leave them out for everywhere");
        }
        require(!self.algorithms.is_empty(), "algorithms".into(), "at least one is needed, such as RS256");
        require(plain(&self.label, 40), "label".into(), "must be 1 to 40 characters");
        errors
    }

    /// What a person with these claims may do: the highest role among them, and where several give it, in the projects
    /// of all these.
    pub fn role(&self, claims: &Map<String, Value>) -> Result<Mapped, NoRole> {
        let values = match self.find_roles(claims) {
            None | Some(Value::Null) => return Err(NoRole::Missing),
            Some(Value::Array(values)) => values,
            Some(_) => return Err(NoRole::WrongType),
        };
        if values.is_empty() {
            return Err(NoRole::Empty);
        }
        if values.len() > MOST_ROLES {
            return Err(NoRole::TooMany);
        }
        let mut best: Option<Mapped> = None;
        for value in values {
            let value = value.as_str().ok_or(NoRole::WrongType)?;
            if value.len() > 4 * LONGEST_ROLE {
                return Err(NoRole::TooMany);
            }
            let Some(mapped) = self.role_map.get(value) else { continue };
            best = Some(match best {
                Some(best) if best.role > mapped.role => best,
                Some(best) if best.role == mapped.role => best.and(mapped),
                Some(_) | None => mapped.clone(),
            });
        }
        best.ok_or(NoRole::NoMatch)
    }

    /// The claim with the roles: by its whole name, else along the dots in it.
    pub fn find_roles<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        claims.get(&self.roles_claim).or_else(|| {
            let mut names = self.roles_claim.split('.');
            let first = claims.get(names.next()?)?;
            names.try_fold(first, |claim, name| claim.get(name))
        })
    }
}

impl Mapped {
    /// A value of the claim and what it is worth, written as `value=role` or `value=role:project+project`.
    pub fn read(entry: &str) -> Result<(String, Self), String> {
        let (value, worth) = entry.rsplit_once('=').ok_or(format!("`{entry}` is not of the form value=role"))?;
        let (role, projects) = match worth.split_once(':') {
            Some((role, projects)) => (role, Some(projects)),
            None => (worth, None),
        };
        let role: Role = serde_json::from_value(role.trim().into())
            .map_err(|_| format!("`{}` is no role: viewer, operator or admin", role.trim()))?;
        let projects = projects.map(|all| all.split('+').map(|name| name.trim().parse::<Slug>()).collect()).transpose();
        let projects = projects.map_err(|error| error.to_string())?;
        Ok((value.trim().to_owned(), Self { role, projects }))
    }

    /// The same role in the projects of both.
    fn and(self, other: &Self) -> Self {
        let projects = self.projects.zip(other.projects.clone()).map(|(mine, others)| mine.into_iter().chain(others));
        Self { role: self.role, projects: projects.map(Iterator::collect) }
    }
}

/// Encrypted, or on this machine; and nothing secret in it.
fn good_issuer(issuer: &str) -> bool {
    let (rest, encrypted) = match (issuer.strip_prefix("https://"), issuer.strip_prefix("http://")) {
        (Some(rest), _) => (rest, true),
        (None, Some(rest)) => (rest, false),
        (None, None) => return false,
    };
    let (host, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let good_path = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&b));
    let good_path = good_path && !path.contains("/../") && !path.contains("/./");
    let six = host.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let good_host = match six {
        Some((address, port)) => {
            address.parse::<std::net::Ipv6Addr>().is_ok() && image::valid_host(&format!("h{port}"))
        }
        None => image::valid_host(host),
    };
    let name = six.map_or_else(|| host.split(':').next().unwrap_or(host), |(address, _)| address);
    let here = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    issuer.len() <= 500 && good_host && good_path && (encrypted || here)
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sso {
    /// None where nobody declared a provider.
    pub settings: Option<Settings>,
    pub secret: Option<ClientSecret>,
}

/// Where the client secret lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSecret {
    /// Key in the vault.
    pub secret: String,
    /// Revision of that key.
    pub version: u64,
}

#[derive(Debug, Clone)]
pub enum Command {
    Configure { settings: Settings },
    SetSecret { secret: String, version: u64 },
    RemoveSecret,
    Remove,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("no provider is declared: declare its issuer and client id first")]
    Unknown,
    #[error("no client secret is stored for the provider")]
    NoSecret,
    #[error("{}", .0.iter().map(|e| format!("{}: {}", e.field, e.problem)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
}

impl Key<Sso> {
    /// There is one provider.
    pub fn sso() -> Self {
        Key::new("oidc".into())
    }

    /// Where its client secret lies in the vault; `unique` for each new one.
    pub fn secret(&self, unique: &str) -> String {
        format!("sso/{}/{unique}", self.as_str())
    }
}

impl Aggregate for Sso {
    const NAME: &'static str = "sso";
    type Event = Event;
    type Command = Command;
    type Rejection = Rejection;

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::Configure { settings } => {
                let errors = settings.check();
                if !errors.is_empty() {
                    return Err(Rejection::Invalid(errors));
                }
                if self.settings.as_ref() == Some(&settings) {
                    return Ok(vec![]);
                }
                let for_whom = |settings: &Settings| (settings.issuer.clone(), settings.client_id.clone());
                let moved = self.settings.as_ref().map(for_whom) != Some(for_whom(&settings));
                let ended = self.secret.as_ref().filter(|_| moved).map(|_| Event::SecretRemoved {});
                Ok(ended.into_iter().chain([Event::Configured { settings }]).collect())
            }
            Command::SetSecret { secret, version } => match (&self.settings, &self.secret) {
                (None, _) => Err(Rejection::Unknown),
                (Some(_), Some(known)) if known.secret == secret && known.version == version => Ok(vec![]),
                (Some(_), Some(_) | None) => Ok(vec![Event::SecretSet { secret, version }]),
            },
            Command::RemoveSecret => match self.secret {
                Some(_) => Ok(vec![Event::SecretRemoved {}]),
                None => Err(Rejection::NoSecret),
            },
            Command::Remove => match (&self.settings, &self.secret) {
                (None, _) => Err(Rejection::Unknown),
                (Some(_), Some(_)) => Ok(vec![Event::SecretRemoved {}, Event::Removed {}]),
                (Some(_), None) => Ok(vec![Event::Removed {}]),
            },
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::Configured { settings } => self.settings = Some(settings.clone()),
            Event::SecretSet { secret, version } => {
                self.secret = Some(ClientSecret { secret: secret.clone(), version: *version });
            }
            Event::SecretRemoved {} => self.secret = None,
            Event::Removed {} => *self = Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn settings() -> Settings {
        Settings::new("https://id.example.com/realms/main", "sluice")
    }

    fn run(sso: &mut Sso, command: Command) -> Result<Vec<&'static str>, Rejection> {
        let events = sso.decide(command)?;
        events.iter().for_each(|event| sso.evolve(event));
        let name = |event: &Event| match event {
            Event::Configured { .. } => "configured",
            Event::SecretSet { .. } => "set",
            Event::SecretRemoved {} => "ended",
            Event::Removed {} => "removed",
        };
        Ok(events.iter().map(name).collect())
    }

    fn set() -> Command {
        Command::SetSecret { secret: "sso/oidc/x".into(), version: 1 }
    }

    fn claims(value: Value) -> Map<String, Value> {
        Map::from_iter([("roles".to_owned(), value)])
    }

    #[test]
    fn another_issuer_or_client_ends_the_secret_and_another_label_does_not() {
        for (change, events) in [
            (Settings { label: "Go".into(), ..settings() }, vec!["configured"]),
            (
                Settings { issuer: "https://id.example.com/realms/main/".into(), ..settings() },
                vec!["ended", "configured"],
            ),
            (Settings { client_id: "other".into(), ..settings() }, vec!["ended", "configured"]),
            (settings(), vec![]),
        ] {
            let mut sso = Sso::default();
            assert_eq!(run(&mut sso, set()), Err(Rejection::Unknown), "a secret for nobody");
            run(&mut sso, Command::Configure { settings: settings() }).expect("accepted");
            assert_eq!(run(&mut sso, set()), Ok(vec!["set"]));
            assert_eq!(run(&mut sso, set()), Ok(vec![]), "twice is once");
            assert_eq!(
                run(&mut sso, Command::Configure { settings: change.clone() }),
                Ok(events.clone()),
                "{change:?}"
            );
            assert_eq!(sso.secret.is_none(), events.contains(&"ended"));
        }
    }

    #[test]
    fn what_is_removed_is_as_new() {
        let mut sso = Sso::default();
        assert_eq!(run(&mut sso, Command::Remove), Err(Rejection::Unknown));
        run(&mut sso, Command::Configure { settings: settings() }).expect("accepted");
        assert_eq!(run(&mut sso, Command::RemoveSecret), Err(Rejection::NoSecret));
        run(&mut sso, set()).expect("accepted");
        assert_eq!(run(&mut sso, Command::Remove), Ok(vec!["ended", "removed"]));
        assert_eq!(sso, Sso::default());
    }

    #[test]
    fn an_issuer_is_encrypted_or_here_and_holds_nothing_secret() {
        for good in [
            "https://id.example.com",
            "https://id.example.com/",
            "https://auth.example.com:9443/application/o/sluice/",
            "http://127.0.0.1:9000/x",
            "http://[::1]:9000",
            "http://localhost:8080/realms/main",
        ] {
            assert_eq!(Settings { issuer: good.into(), ..settings() }.check(), vec![], "{good}");
        }
        for bad in [
            "",
            "id.example.com",
            "ftp://id.example.com",
            "http://id.example.com",
            "http://127.example.com",
            "http://10.0.0.1",
            "https://",
            "https://u:p@id.example.com",
            "https://id.example.com?x=1",
            "https://id.example.com/a?x=1",
            "https://id.example.com/#x",
            "https://id.example.com/a b",
            "https://id.example.com/a/../b",
            "https://id.example.com\\@evil",
            "https://[::1",
            "https://id.example.com ",
        ] {
            let errors = Settings { issuer: bad.into(), ..settings() }.check();
            assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), ["issuer"], "{bad:?}");
        }
    }

    #[test]
    fn each_bad_field_is_named() {
        let nowhere = Mapped { role: Role::Viewer, projects: Some(BTreeSet::new()) };
        let bad = Settings {
            issuer: "x".into(),
            client_id: "\n".into(),
            scopes: vec!["a b".into()],
            roles_claim: String::new(),
            role_map: [("devs".to_owned(), nowhere), (" x".to_owned(), Mapped { role: Role::Admin, projects: None })]
                .into(),
            algorithms: BTreeSet::new(),
            label: String::new(),
        };
        let fields: Vec<String> = bad.check().into_iter().map(|error| error.field).collect();
        let all =
            ["issuer", "client_id", "scopes", "roles_claim", "role_map. x", "role_map.devs", "algorithms", "label"];
        assert_eq!(fields, all);
        let none = Settings { role_map: BTreeMap::new(), ..settings() };
        assert_eq!(none.check()[0].field, "role_map");
    }

    #[test]
    fn what_proves_nothing_cannot_even_be_written_down() {
        for name in ["none", "HS256", "HS384", "HS512", "rs256", "", "ES512"] {
            assert!(serde_json::from_value::<Algorithm>(json!(name)).is_err(), "{name} passed");
            assert_eq!(Algorithm::named(name), None);
        }
        for (algorithm, name) in Algorithm::ALL {
            assert_eq!(serde_json::to_value(algorithm).expect("encodes"), name);
            assert_eq!((algorithm.to_string().as_str(), Algorithm::named(name)), (name, Some(algorithm)));
        }
    }

    #[test]
    fn the_highest_role_wins_where_it_is_given() {
        let projects = |names: &[&str]| Some(names.iter().map(|name| name.parse().expect("a name")).collect());
        let map = [
            ("v", Role::Viewer, None),
            ("o-shop", Role::Operator, projects(&["shop"])),
            ("o-blog", Role::Operator, projects(&["blog"])),
            ("o", Role::Operator, None),
        ];
        let role_map = map.map(|(value, role, projects)| (value.to_owned(), Mapped { role, projects })).into();
        let settings = Settings { role_map, ..settings() };
        for (values, role, wanted) in [
            (json!(["x", "v"]), Role::Viewer, None),
            (json!(["v", "o-shop"]), Role::Operator, projects(&["shop"])),
            (json!(["o-shop", "v"]), Role::Operator, projects(&["shop"])),
            (json!(["o-shop", "o-blog"]), Role::Operator, projects(&["shop", "blog"])),
            (json!(["o-shop", "o", "v"]), Role::Operator, None),
            (json!(["o", "o-shop"]), Role::Operator, None),
        ] {
            assert_eq!(settings.role(&claims(values)), Ok(Mapped { role, projects: wanted }));
        }
    }

    #[test]
    fn nobody_signs_in_without_a_role_and_is_told_why() {
        let many: Vec<String> = (0..=MOST_ROLES).map(|n| n.to_string()).collect();
        for (value, reason) in [
            (json!(null), NoRole::Missing),
            (json!([]), NoRole::Empty),
            (json!("admin"), NoRole::WrongType),
            (json!(1), NoRole::WrongType),
            (json!({ "admin": true }), NoRole::WrongType),
            (json!(["admin", 1]), NoRole::WrongType),
            (json!([["admin"]]), NoRole::WrongType),
            (json!(many), NoRole::TooMany),
            (json!(["admin", "x".repeat(5_000)]), NoRole::TooMany),
            (json!(["Admin", "admin "]), NoRole::NoMatch),
        ] {
            assert_eq!(settings().role(&claims(value.clone())), Err(reason), "{value}");
        }
        assert_eq!(settings().role(&Map::new()), Err(NoRole::Missing));
        let codes: BTreeSet<_> = [NoRole::Missing, NoRole::WrongType, NoRole::Empty, NoRole::TooMany, NoRole::NoMatch]
            .map(NoRole::code)
            .into();
        assert_eq!(codes.len(), 5);
    }

    #[test]
    fn a_claim_is_found_by_its_name_and_then_along_its_dots() {
        let nested = Settings { roles_claim: "realm_access.roles".into(), ..settings() };
        let found = |claims: Value| nested.role(claims.as_object().expect("an object")).map(|mapped| mapped.role);
        assert_eq!(found(json!({ "realm_access": { "roles": ["admin"] } })), Ok(Role::Admin));
        assert_eq!(
            found(json!({ "realm_access.roles": ["viewer"], "realm_access": { "roles": ["admin"] } })),
            Ok(Role::Viewer)
        );
        assert_eq!(found(json!({ "realm_access": ["admin"] })), Err(NoRole::Missing));
    }

    proptest! {
        #[test]
        fn no_issuer_panics(text in "\\PC*") {
            let _ = Settings::new(text, "sluice").check();
        }
    }
}

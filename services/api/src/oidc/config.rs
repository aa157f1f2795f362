//! The provider as environment variables have it. Where they name one they speak alone, and the settings are not looked
//! at: a secret from here must not go to an issuer from there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail};
use domain::sso::{self, Algorithm, Mapped, Settings};
use eventlog::Secret;
use runtime::outgoing::Outgoing;

/// Everything about sign-in through a provider that the environment says.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `URL_ALLOW_LOCAL`.
    pub outgoing: Outgoing,
    /// `OIDC_*`.
    pub declared: Option<Declared>,
}

/// The provider that the environment names.
#[derive(Debug, Clone)]
pub struct Declared {
    pub settings: Settings,
    pub secret: Option<Secret>,
}

const ISSUER: &str = "OIDC_ISSUER";
const CLIENT_ID: &str = "OIDC_CLIENT_ID";
const CLIENT_SECRET: &str = "OIDC_CLIENT_SECRET";
const CLIENT_SECRET_FILE: &str = "OIDC_CLIENT_SECRET_FILE";
const SCOPES: &str = "OIDC_SCOPES";
const ROLES_CLAIM: &str = "OIDC_ROLES_CLAIM";
const ROLE_MAP: &str = "OIDC_ROLE_MAP";
const ALGORITHMS: &str = "OIDC_ALGORITHMS";
const LABEL: &str = "OIDC_LABEL";
/// Those that mean nothing without an issuer.
const OTHERS: [&str; 8] =
    [CLIENT_ID, CLIENT_SECRET, CLIENT_SECRET_FILE, SCOPES, ROLES_CLAIM, ROLE_MAP, ALGORITHMS, LABEL];

impl Config {
    /// From the variables that `get` knows. An error names the variable.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let outgoing = get(Outgoing::VARIABLE).unwrap_or_default().parse();
        Ok(Self {
            outgoing: outgoing.map_err(|problem: String| anyhow!("{}: {problem}", Outgoing::VARIABLE))?,
            declared: declared(&get)?,
        })
    }
}

fn declared(get: &impl Fn(&str) -> Option<String>) -> Result<Option<Declared>> {
    let Some(issuer) = get(ISSUER) else {
        if let Some(name) = OTHERS.into_iter().find(|name| get(name).is_some()) {
            bail!("{ISSUER}: it is not set, and {name} is: set both, or declare the provider in the settings alone");
        }
        return Ok(None);
    };
    let client_id = get(CLIENT_ID).ok_or_else(|| anyhow!("{CLIENT_ID}: it is not set, and {ISSUER} is: set both"))?;
    let mut settings = Settings::new(issuer, client_id);
    if let Some(scopes) = get(SCOPES) {
        settings.scopes = words(&scopes).collect();
    }
    if let Some(claim) = get(ROLES_CLAIM) {
        settings.roles_claim = claim;
    }
    if let Some(map) = get(ROLE_MAP) {
        settings.role_map = role_map(&map).map_err(|problem| anyhow!("{ROLE_MAP}: {problem}"))?;
    }
    if let Some(names) = get(ALGORITHMS) {
        let known = |name: String| {
            let all = || sso::Algorithm::all().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Algorithm::named(&name).ok_or_else(|| anyhow!("{ALGORITHMS}: `{name}` is none of {}", all()))
        };
        settings.algorithms = words(&names).map(known).collect::<Result<BTreeSet<_>>>()?;
    }
    if let Some(label) = get(LABEL) {
        settings.label = label;
    }
    // The names of fields and of variables agree.
    if let Some(error) = settings.check().into_iter().next() {
        let field = error.field.split('.').next().unwrap_or_default().to_ascii_uppercase();
        bail!("OIDC_{field}: {} {}", error.field, error.problem);
    }
    Ok(Some(Declared { settings, secret: secret(get)? }))
}

fn secret(get: &impl Fn(&str) -> Option<String>) -> Result<Option<Secret>> {
    let secret = match (get(CLIENT_SECRET), get(CLIENT_SECRET_FILE)) {
        (Some(_), Some(_)) => bail!("{CLIENT_SECRET}: {CLIENT_SECRET_FILE} is set, too: set one of them"),
        (Some(secret), None) => Some(secret),
        (None, Some(path)) => {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("{CLIENT_SECRET_FILE}: reading {path}"))?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        (None, None) => None,
    };
    match secret {
        Some(secret) if secret.is_empty() || secret.len() > 1024 || secret.chars().any(char::is_control) => {
            bail!("{CLIENT_SECRET}: it must be 1 to 1024 characters, without control characters")
        }
        secret => Ok(secret.map(Secret::new)),
    }
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split([',', ' ']).filter(|word| !word.is_empty()).map(str::to_owned)
}

/// `admins=admin, shop-team=operator:shop+blog`; or, for values with commas in them, the JSON of the settings.
fn role_map(text: &str) -> Result<BTreeMap<String, Mapped>, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| format!("this is no JSON of roles: {error}"));
    }
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let mut map = BTreeMap::new();
    for entry in entries {
        let (value, mapped) = Mapped::read(entry)?;
        if map.insert(value.clone(), mapped).is_some() {
            return Err(format!("`{value}` stands there twice"));
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use domain::Role;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Config::read(get).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn nothing_set_is_nothing_declared() {
        let config = read(&[]).expect("good");
        assert!(config.declared.is_none());
        assert_eq!(config.outgoing, Outgoing::default());
    }

    #[test]
    fn everything_that_can_be_set_is_read() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "from a file\n").expect("written");
        let config = read(&[
            ("URL_ALLOW_LOCAL", "127.0.0.1"),
            (ISSUER, "https://id.example.com"),
            (CLIENT_ID, "sluice"),
            (CLIENT_SECRET_FILE, file.path().to_str().expect("a path")),
            (SCOPES, "openid email groups"),
            (ROLES_CLAIM, "groups"),
            (ROLE_MAP, "cn=admins=admin, shop-team=operator:shop+blog"),
            (ALGORITHMS, "RS256,EdDSA"),
            (LABEL, "Sign in with Example"),
        ])
        .expect("good");
        let Declared { settings, secret } = config.declared.expect("declared");
        let projects = ["shop", "blog"].map(|name| name.parse().expect("a name")).into();
        let role_map = [
            ("cn=admins".to_owned(), Mapped { role: Role::Admin, projects: None }),
            ("shop-team".to_owned(), Mapped { role: Role::Operator, projects: Some(projects) }),
        ];
        let wanted = Settings {
            issuer: "https://id.example.com".into(),
            client_id: "sluice".into(),
            scopes: ["openid", "email", "groups"].map(str::to_owned).to_vec(),
            roles_claim: "groups".into(),
            role_map: role_map.into(),
            algorithms: [Algorithm::Rs256, Algorithm::EdDsa].into(),
            label: "Sign in with Example".into(),
        };
        assert_eq!(settings, wanted);
        assert_eq!(secret.map(|secret| secret.expose().to_vec()), Some(b"from a file".to_vec()));
        let json = r#"{"cn=a,ou=b": {"role": "viewer"}}"#;
        assert_eq!(role_map_of(json), Ok(["cn=a,ou=b".to_owned()].to_vec()));
    }

    fn role_map_of(text: &str) -> Result<Vec<String>, String> {
        role_map(text).map(|map| map.into_keys().collect())
    }

    #[test]
    fn each_bad_value_names_its_variable_and_no_secret() {
        let canary = "canary\u{1}secret";
        for (name, value) in [
            (ISSUER, "http://id.example.com"),
            (CLIENT_ID, "\u{7f}"),
            (CLIENT_SECRET, canary),
            (CLIENT_SECRET_FILE, "/nowhere/at/all"),
            (SCOPES, "\"x\""),
            (ROLES_CLAIM, " "),
            (ROLE_MAP, "admins"),
            (ROLE_MAP, "admins=root"),
            (ROLE_MAP, "a=admin,a=viewer"),
            (ROLE_MAP, "a=admin:"),
            (ROLE_MAP, ","),
            (ROLE_MAP, "{"),
            (ALGORITHMS, "none"),
            (ALGORITHMS, "HS256"),
            (LABEL, "\n"),
            ("URL_ALLOW_LOCAL", "localhost"),
        ] {
            let mut variables = vec![(name, value)];
            variables
                .extend([(ISSUER, "https://id.example.com"), (CLIENT_ID, "sluice")].iter().filter(|v| v.0 != name));
            let error = read(&variables).expect_err(name);
            assert!(error.starts_with(&format!("{name}:")), "{name}={value}: {error}");
            assert!(!error.contains("canary"), "{error}");
        }
        for alone in OTHERS {
            assert!(read(&[(alone, "x")]).expect_err(alone).starts_with("OIDC_ISSUER:"));
        }
        let error = read(&[(ISSUER, "https://id.example.com")]).expect_err("no client id");
        assert!(error.starts_with("OIDC_CLIENT_ID:"), "{error}");
        let both =
            [(ISSUER, "https://id.example.com"), (CLIENT_ID, "x"), (CLIENT_SECRET, "a"), (CLIENT_SECRET_FILE, "b")];
        assert!(read(&both).expect_err("both").starts_with("OIDC_CLIENT_SECRET:"));
    }
}

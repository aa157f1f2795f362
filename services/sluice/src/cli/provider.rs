//! `sluice provider ...`: the OpenID provider that people sign in at. Its client secret comes from a terminal or a pipe,
//! never from the command line.

use clap::{Args, Subcommand};
use domain::{
    Grant,
    sso::{self, Algorithm, Mapped, Settings},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    exit::{Code, Failure},
    prompt,
    ui::{self, Ui},
};
use crate::client::{self, Client, Parts};

const PATH: &str = "/auth/provider";
const SECRET: &str = "/auth/provider/secret";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The provider, and what has to be registered there
    Show,
    /// Declare the provider, or change it; what is left out is as by default
    Set(Set),
    /// Keep another client secret: asked for, or read from a pipe
    Secret {
        /// Forget it instead: for a client that the provider knows as public
        #[arg(long)]
        remove: bool,
    },
    /// Forget the provider: nobody can sign in there any more
    Remove,
    /// Ask the provider for all that a sign-in needs, and say plainly what is wrong
    Test,
}

#[derive(Args)]
pub(crate) struct Set {
    /// Its address as it writes it itself, e.g. https://id.example.com/realms/main; another one ends the client secret
    issuer: String,
    /// What the provider calls Sluice; another one ends the client secret, too
    #[arg(long)]
    client_id: String,
    /// Read the client secret, from a terminal or a pipe; without this the one that is kept stays
    #[arg(long)]
    secret_stdin: bool,
    /// What is asked for, once for each [default: openid, profile and email]
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// The claim with the list of roles or groups; dots lead into nested claims
    #[arg(long, default_value_t = sso::usual_claim())]
    roles_claim: String,
    /// What a value in that list is worth, once for each: admins=admin, shop-team=operator:shop+blog [default: viewer,
    /// operator and admin, each by its own name]
    #[arg(long = "role", value_name = "VALUE=ROLE", value_parser = Mapped::read)]
    roles: Vec<(String, Mapped)>,
    /// A signature that is accepted, once for each [default: RS, PS and ES with 256 to 512 bits, and EdDSA]
    #[arg(long = "algorithm", value_name = "NAME", value_parser = algorithm)]
    algorithms: Vec<Algorithm>,
    /// On the button of the sign-in page
    #[arg(long, default_value_t = sso::usual_label())]
    label: String,
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    let all = || Algorithm::all().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Algorithm::named(name).ok_or_else(|| format!("give one of {}", all()))
}

impl From<Set> for Settings {
    fn from(set: Set) -> Self {
        let usual = Self::new(set.issuer, set.client_id);
        Self {
            scopes: if set.scopes.is_empty() { usual.scopes } else { set.scopes },
            roles_claim: set.roles_claim,
            role_map: if set.roles.is_empty() { usual.role_map } else { set.roles.into_iter().collect() },
            algorithms: if set.algorithms.is_empty() { usual.algorithms } else { set.algorithms.into_iter().collect() },
            label: set.label,
            ..usual
        }
    }
}

pub(super) async fn run(command: Command, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    match command {
        Command::Show => show(client, ui).await?,
        Command::Set(set) => declare(set, client, ui).await?,
        Command::Secret { remove: false } => {
            let answer = keep_secret(client).await?;
            ui.result(&answer, || "the next sign-in uses this client secret".to_owned())?;
        }
        Command::Secret { remove: true } => {
            let answer = client.send(Method::DELETE, SECRET, Parts::default()).await?;
            ui.result(&answer, || "the client secret is forgotten".to_owned())?;
        }
        Command::Remove => {
            let answer = client.send(Method::DELETE, PATH, Parts::default()).await?;
            ui.result(&answer, || "no provider is declared here any more".to_owned())?;
        }
        Command::Test => return test(client, ui).await,
    }
    Ok(Code::Ok)
}

async fn declare(set: Set, client: &Client, ui: &Ui) -> Result<(), Failure> {
    let with_secret = set.secret_stdin;
    let settings = Settings::from(set);
    let mut answer = client.send(Method::PUT, PATH, Parts::body(json!(settings))).await?;
    if with_secret {
        answer = keep_secret(client).await?;
    }
    let declared: client::Provider = client::read(client.get(PATH, &[]).await?)?;
    ui.result(&answer, || format!("people may sign in at {}", settings.issuer))?;
    ui.note(format!("register there as the redirect URI: {}", declared.redirect_uri));
    if !declared.has_secret {
        ui.note("no client secret is kept: `sluice provider secret` keeps one, unless the client is a public one");
    }
    ui.note("`sluice provider test` says whether a sign-in can work");
    Ok(())
}

async fn keep_secret(client: &Client) -> Result<Value, Failure> {
    let secret = prompt::secret("client secret: ").await?;
    Ok(client.send(Method::PUT, SECRET, Parts::body(json!({ "secret": secret }))).await?)
}

async fn show(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let answer = client.get(PATH, &[]).await?;
    if ui.json {
        ui.document(&answer)?;
        return Ok(());
    }
    let client::Provider { managed_by, settings, has_secret, redirect_uri } = client::read(answer)?;
    let line = |field: &str, value: String| [field.to_owned(), value];
    let secret = if has_secret { "kept" } else { "none" };
    let by = match managed_by.as_str() {
        "environment" => "the variables OIDC_* of the API".to_owned(),
        "settings" => "`sluice provider set`".to_owned(),
        other => ui::clean(other),
    };
    let algorithms: Vec<_> = settings.algorithms.iter().map(ToString::to_string).collect();
    let mut rows = vec![
        line("client id", settings.client_id),
        line("client secret", secret.to_owned()),
        line("redirect URI", redirect_uri),
        line("scopes", settings.scopes.join(" ")),
        line("claim with the roles", settings.roles_claim),
    ];
    rows.extend(settings.role_map.into_iter().map(|(value, Mapped { role, projects })| {
        let grant = Grant { role, projects };
        line("role", format!("{value} is {grant}"))
    }));
    rows.extend([line("signatures", algorithms.join(" ")), line("button", settings.label), line("declared by", by)]);
    ui.table(["ISSUER", &settings.issuer], rows)?;
    Ok(())
}

/// Fails where nobody could sign in, for scripts.
async fn test(client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.send(Method::POST, "/auth/provider/test", Parts::default()).await?;
    let report: client::ProviderReport = client::read(answer.clone())?;
    if ui.json {
        ui.document(&answer)?;
    } else {
        let rows = report.checks.into_iter().map(|check| [check.name, check.outcome, check.detail]);
        ui.table(["CHECK", "OUTCOME", "FOUND"], rows.collect())?;
        if report.good {
            ui.note(
                "a sign-in can work; whether the redirect URI and the client secret are right, the first one shows",
            );
        }
    }
    Ok(if report.good { Code::Ok } else { Code::Failed })
}

//! `sluice login`, `sluice logout` and `sluice whoami`.

use clap::Args;
use domain::Slug;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    exit::{Code, Failure},
    prompt,
    ui::{self, Ui},
};
use crate::client::{self, Client, Parts};

#[derive(Args)]
pub(crate) struct Login {
    /// Who signs in; the password is asked for, or read from standard input
    #[arg(required_unless_present = "browser")]
    name: Option<String>,
    /// Sign in at the provider with a browser, on any machine, and type here the code that it shows
    #[arg(long, conflicts_with = "name")]
    browser: bool,
    /// What the token is called in `sluice token list`
    #[arg(long, default_value = "cli")]
    token_name: Slug,
}

/// Where the browser ends up, which shows the code.
const CODE: &str = "/api/v1/auth/code";

pub(super) async fn login(Login { name, token_name, .. }: Login, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let mut answer = match &name {
        Some(name) => by_password(name, &token_name, client).await?,
        None => by_browser(&token_name, client, ui).await?,
    };
    // The token goes to its file and nowhere else.
    let token = answer.as_object_mut().and_then(|answer| answer.remove("token"));
    let token = token.as_ref().and_then(|token| token.as_str()).ok_or_else(|| {
        Failure::new(Code::Failed, "token_lost", "the token was made, but its text got lost on the way")
            .hint("sign in again")
    })?;
    client.keep_token(Some(token))?;
    let name = name.map(|name| format!(" as {name}")).unwrap_or_default();
    ui.result(&answer, || format!("signed in to {}{name}", client.api()))?;
    Ok(Code::Ok)
}

async fn by_password(name: &str, token_name: &Slug, client: &Client) -> Result<Value, Failure> {
    let password = prompt::password(&format!("password of {name} at {}: ", client.api())).await?;
    let body = json!({ "name": name, "password": password, "token_name": token_name });
    match client.send(Method::POST, "/auth/token", Parts::body(body)).await {
        Err(client::Error::Refused(problem)) if problem.code == "bad_credentials" => {
            let failure = Failure::from(problem);
            // Whoever comes from the provider has no password here, which the API tells nobody.
            Err(match provider(client).await {
                Ok(Some(_)) => {
                    failure.hint("whoever signs in at the provider has no password here: `sluice login --browser`")
                }
                Ok(None) | Err(_) => failure,
            })
        }
        answer => Ok(answer?),
    }
}

async fn by_browser(token_name: &Slug, client: &Client, ui: &Ui) -> Result<Value, Failure> {
    let button = provider(client).await?.ok_or_else(|| {
        Failure::new(Code::NotFound, "provider_not_found", "no provider is declared to sign in at")
            .hint("`sluice login NAME` asks for a password; `sluice provider set` declares a provider")
    })?;
    ui.note(format!("open this address in a browser ({}), and type the code that it shows then:", button.label));
    ui.note(format!("\n  {}?return_to={CODE}\n", button.start));
    let code = prompt::password("code: ").await?;
    let body = json!({ "code": code.trim(), "token_name": token_name });
    Ok(client.send(Method::POST, "/auth/code", Parts::body(body)).await?)
}

async fn provider(client: &Client) -> Result<Option<client::SignInButton>, client::Error> {
    Ok(client::read::<client::Methods>(client.get("/auth/methods", &[]).await?)?.provider)
}

pub(super) async fn logout(client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.send(Method::POST, "/auth/logout", Parts::default()).await;
    let ended = match answer {
        // It is good for nothing already.
        Err(client::Error::Refused(problem)) if problem.status == 401 => json!({}),
        answer => answer?,
    };
    client.keep_token(None)?;
    ui.result(&ended, || format!("signed out of {}", client.api()))?;
    Ok(Code::Ok)
}

pub(super) async fn whoami(client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let answer = client.get("/auth/me", &[]).await?;
    let me: client::Me = client::read(answer.clone())?;
    ui.result(&answer, || {
        let until = me.until.map(|until| format!(", until {}", ui::date(until))).unwrap_or_default();
        format!("{} ({}): {}{until}", me.name.as_deref().unwrap_or("a program"), me.actor, me.grant)
    })?;
    Ok(Code::Ok)
}

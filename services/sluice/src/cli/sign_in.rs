//! `sluice login`, `sluice logout` and `sluice whoami`.

use clap::Args;
use domain::Slug;
use reqwest::Method;
use serde_json::json;

use super::{
    exit::{Code, Failure},
    prompt,
    ui::{self, Ui},
};
use crate::client::{self, Client, Parts};

#[derive(Args)]
pub(crate) struct Login {
    /// Who signs in; the password is asked for, or read from standard input
    name: String,
    /// What the token is called in `sluice token list`
    #[arg(long, default_value = "cli")]
    token_name: Slug,
}

pub(super) async fn login(Login { name, token_name }: Login, client: &Client, ui: &Ui) -> Result<Code, Failure> {
    let password = prompt::password(&format!("password of {name} at {}: ", client.api())).await?;
    let body = json!({ "name": name, "password": password, "token_name": token_name });
    let mut answer = client.send(Method::POST, "/auth/token", Parts::body(body)).await?;
    // The token goes to its file and nowhere else.
    let token = answer.as_object_mut().and_then(|answer| answer.remove("token"));
    let token = token.as_ref().and_then(|token| token.as_str()).ok_or_else(|| {
        Failure::new(Code::Failed, "token_lost", "the token was made, but its text got lost on the way")
            .hint("sign in again")
    })?;
    client.keep_token(Some(token))?;
    ui.result(&answer, || format!("signed in to {} as {name}", client.api()))?;
    Ok(Code::Ok)
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

//! The client commands: what a person or a script asks of a running Sluice.

mod configuration;
mod declaration;
mod deploy;
mod deployments;
mod diff;
pub(crate) mod edge;
mod events;
pub(crate) mod exit;
mod health;
mod hook;
mod logs;
mod people;
mod policy;
mod project;
mod promotion;
mod prompt;
mod provider;
mod proxy;
pub(crate) mod readmodels;
mod registry;
mod rollout;
mod schema;
mod secret;
mod session;
mod sign_in;
mod stage;
mod status;
mod token;
mod ui;
mod user;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use clap_complete::Shell;
use domain::Slug;

use crate::client::Client;
use exit::{Code, Failure};
use ui::Ui;

#[derive(Args)]
pub(crate) struct Globals {
    /// Print JSON: one document, or one line each for what is followed
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write the whole configuration as YAML: projects, stages, policies, gates, registries; secrets as references
    Export(configuration::Export),
    /// Make everything as a file declares it: shows the changes, field by field, and makes them
    Apply(configuration::Apply),
    /// What is not as it should be: the file, what is declared, what was deployed and what runs (exit code 8)
    Diff(diff::Diff),
    /// A JSON Schema of a file, for editors
    Schema {
        #[arg(default_value = "configuration")]
        of: schema::Kind,
    },
    /// Declare, list, show and archive projects
    #[command(subcommand)]
    Project(project::Command),
    /// Archive a stage
    #[command(subcommand)]
    Stage(stage::Command),
    /// Put an image on a stage
    Deploy(deploy::Deploy),
    /// Take the release of the stage that this one promotes from: the very bytes that run there
    Promote(promotion::Promote),
    /// List, approve, withdraw and verify promotions
    #[command(subcommand)]
    Promotion(promotion::Command),
    /// Go back to an earlier release
    Rollback(deploy::Rollback),
    /// Deploy what runs again, under the settings, variables and secrets of now
    Redeploy(deploy::Redeploy),
    /// What serves on each stage, what is on its way and what waits
    Status(status::Status),
    /// Earlier and present deployments, newest first
    Deployments(deployments::List),
    /// One deployment, step by step
    Deployment(deployments::Show),
    /// What containers and steps wrote
    Logs(logs::Logs),
    /// Call a deployment off; what served before serves on
    Cancel(deploy::Cancel),
    /// Refuse new deployments to a stage
    Lock(stage::Lock),
    /// Take new deployments again
    Unlock(stage::Unlock),
    /// Keep automation away from a stage
    Hold(stage::Hold),
    /// Let automation deploy to a stage again
    Unhold(Target),
    /// The event log: everything that happened
    Events(events::Events),
    /// What a stage takes by itself, and what the last look for it found
    Policy(Target),
    /// Image registries: how they are asked, and signing in to them
    #[command(subcommand)]
    Registry(registry::Command),
    /// Webhooks by which registries and builds tell of images
    #[command(subcommand)]
    Hook(hook::Command),
    /// Reverse proxies of your own, in front of stages
    #[command(subcommand)]
    Proxy(proxy::Command),
    /// Secrets that stages run with
    #[command(subcommand)]
    Secret(secret::Command),
    /// Sign in by name and password; what is kept is a token, which the commands that follow use
    Login(sign_in::Login),
    /// Sign out: the kept token ends
    Logout,
    /// Who is signed in here, and what they may do
    Whoami,
    /// The OpenID provider that people sign in at
    #[command(subcommand)]
    Provider(provider::Command),
    /// People: let in, granted a role, disabled, erased
    #[command(subcommand)]
    User(user::Command),
    /// Who is signed in with a browser
    #[command(subcommand)]
    Session(session::Command),
    /// Tokens that people and programs sign in with
    #[command(subcommand)]
    Token(token::Command),
    /// Whether every part of Sluice works
    Health,
    /// A completion script, e.g. for /etc/bash_completion.d
    Completions { shell: Shell },
}

/// A stage, named the way every command names it.
#[derive(Args)]
pub(crate) struct Target {
    project: Slug,
    stage: Slug,
}

impl Target {
    fn path(&self, rest: &str) -> String {
        format!("/projects/{}/stages/{}{rest}", self.project, self.stage)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.project, self.stage)
    }
}

/// Runs one client command. `whole` is the command line that completions are made for.
pub(crate) fn main(globals: Globals, command: Command, whole: clap::Command) -> ExitCode {
    run_to_end(&globals, async |ui| run(command, whole, ui).await)
}

/// Runs `work` and says how it failed, where it did.
fn run_to_end(globals: &Globals, work: impl AsyncFnOnce(&Ui) -> Result<Code, Failure>) -> ExitCode {
    let ui = Ui::new(globals.json);
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Failed, "runtime", format!("cannot start: {error}")))
        .and_then(|runtime| {
            let ended = runtime.block_on(work(&ui));
            // A read of standard input may still hang; nobody waits for it.
            runtime.shutdown_background();
            ended
        });
    ui.wipe();
    let code = ended.unwrap_or_else(|failure| {
        if failure.exit != Code::Pipe {
            ui.failure(&failure);
        }
        failure.exit
    });
    ExitCode::from(code as u8)
}

async fn run(command: Command, whole: clap::Command, ui: &Ui) -> Result<Code, Failure> {
    if let Command::Completions { shell } = command {
        ui.raw(&completions(shell, whole))?;
        return Ok(Code::Ok);
    }
    if let Command::Schema { of } = command {
        ui.document(&schema::schema(of)?)?;
        return Ok(Code::Ok);
    }
    let client = Client::open()?;
    match command {
        Command::Export(args) => configuration::export(args, &client, ui).await,
        Command::Apply(args) => configuration::apply(args, &client, ui).await,
        Command::Diff(args) => diff::run(args, &client, ui).await,
        Command::Project(command) => project::run(command, &client, ui).await,
        Command::Stage(command) => stage::run(command, &client, ui).await,
        Command::Deploy(args) => deploy::run(args, &client, ui).await,
        Command::Promote(args) => promotion::promote(args, &client, ui).await,
        Command::Promotion(command) => promotion::run(command, &client, ui).await,
        Command::Rollback(args) => deploy::roll_back(args, &client, ui).await,
        Command::Redeploy(args) => deploy::redeploy(args, &client, ui).await,
        Command::Status(args) => status::run(args, &client, ui).await,
        Command::Deployments(args) => deployments::list(args, &client, ui).await,
        Command::Deployment(args) => deployments::show(args, &client, ui).await,
        Command::Logs(args) => logs::run(args, &client, ui).await,
        Command::Cancel(args) => deploy::cancel(args, &client, ui).await,
        Command::Lock(args) => stage::lock(args, &client, ui).await,
        Command::Unlock(args) => stage::unlock(args, &client, ui).await,
        Command::Hold(args) => stage::hold(args, &client, ui).await,
        Command::Unhold(target) => stage::unhold(target, &client, ui).await,
        Command::Events(args) => events::run(args, &client, ui).await,
        Command::Policy(target) => policy::run(target, &client, ui).await,
        Command::Hook(command) => hook::run(command, &client, ui).await,
        Command::Registry(command) => registry::run(command, &client, ui).await,
        Command::Proxy(command) => proxy::run(command, &client, ui).await,
        Command::Secret(command) => secret::run(command, &client, ui).await,
        Command::Token(command) => token::run(command, &client, ui).await,
        Command::Login(args) => sign_in::login(args, &client, ui).await,
        Command::Logout => sign_in::logout(&client, ui).await,
        Command::Whoami => sign_in::whoami(&client, ui).await,
        Command::Provider(command) => provider::run(command, &client, ui).await,
        Command::User(command) => user::run(command, &client, ui).await,
        Command::Session(command) => session::run(command, &client, ui).await,
        Command::Health => health::run(&client, ui).await,
        Command::Completions { .. } | Command::Schema { .. } => Ok(Code::Ok),
    }
}

fn completions(shell: Shell, mut whole: clap::Command) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut whole, "sluice", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

//! The one binary: every role, and the command line.

mod cli;
mod client;
mod roles;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "sluice", version, about = "Deploys container images with no failed request, and keeps every step as an event", after_help = cli::exit::HELP)]
struct Cli {
    #[command(flatten)]
    globals: cli::Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Role(roles::Role),
    #[command(flatten)]
    Client(cli::Command),
}

fn main() -> ExitCode {
    let Cli { globals, command } = Cli::parse();
    match command {
        Command::Role(role) => roles::main(role, &globals),
        Command::Client(command) => cli::main(globals, command, Cli::command()),
    }
}

//! The real thing: `sluice up` as a user starts it, a real engine, a real registry, the real command line.

use std::{
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use bollard::query_parameters::RemoveImageOptions;
use serde_json::Value;
use testkit::{Docker, Registry, SampleImage};
use tokio::time::timeout;

const COMMAND_LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct Sluice {
    installation: testkit::Sluice,
    pub(crate) edge: String,
    pub(crate) api: String,
    pub(crate) docker: Docker,
    pub(crate) registry: Registry,
}

impl Sluice {
    /// A fresh installation, ready to use.
    pub(crate) async fn up() -> Sluice {
        Sluice::up_on(Docker::connect_or_start().await.expect("an engine")).await
    }

    pub(crate) async fn up_on(docker: Docker) -> Sluice {
        let registry = Registry::start().await.expect("a registry");
        let program = Path::new(env!("CARGO_BIN_EXE_sluice"));
        let installation = testkit::Sluice::prepare(program, docker.host()).expect("a data directory");
        let (edge, api) = (installation.edge().to_owned(), installation.api().to_owned());
        let mut sluice = Sluice { installation, edge, api, docker, registry };
        sluice.start().await;
        sluice
    }

    /// Starts `sluice up` and waits until it says that it runs.
    pub(crate) async fn start(&mut self) {
        self.installation.start().await.expect("`sluice up` runs");
    }

    /// As Ctrl-C does.
    pub(crate) async fn stop(&mut self) {
        self.installation.stop().await.expect("`sluice up` stops in good order");
    }

    /// The supervisor dies as in a crash; nothing gets to say goodbye.
    pub(crate) async fn kill_supervisor(&mut self) {
        self.installation.kill().await.expect("killed");
    }

    /// One of its processes dies as in a crash.
    pub(crate) fn kill_part(&self, part: &str) {
        let pid = self.installation.pid(part).expect("it runs");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    }

    /// A command line that must succeed; its standard output.
    pub(crate) async fn run(&self, args: &[&str]) -> String {
        self.installation.run(args).await.expect("it succeeds")
    }

    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        self.installation.json(args).await.expect("it succeeds")
    }

    /// The one JSON document of a command that must end with `code`.
    pub(crate) async fn json_of(&self, args: &[&str], code: i32) -> Value {
        let output = self.output(&[args, &["--json"]].concat()).await;
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// A command line that must fail: exit code and standard error.
    pub(crate) async fn refused(&self, args: &[&str]) -> (i32, String) {
        let output = self.output(args).await;
        assert!(
            !output.status.success(),
            "sluice {} succeeded: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stdout)
        );
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().expect("an exit code"), said)
    }

    pub(crate) async fn output(&self, args: &[&str]) -> Output {
        self.installation.output(args).await.expect("it runs")
    }

    /// A command line of somebody who signs in with `token`: exit code and everything that it said.
    pub(crate) async fn run_as(&self, token: &str, args: &[&str]) -> (i32, String) {
        let output = self.installation.output_as(token, args).await.expect("it runs");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().expect("an exit code"), said)
    }

    /// With `input` on standard input.
    pub(crate) async fn run_with_input(&self, args: &[&str], input: &str) -> Output {
        self.installation.output_with_input(args, input).await.expect("it runs")
    }

    /// Applies a project `shop` whose stages are given as YAML under `stages:`, indented by two.
    pub(crate) async fn apply(&self, stages: &str) {
        self.installation.apply(&format!("project: shop\nstages:\n{stages}")).await.expect("applied");
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        self.installation.write(name, text).expect("written")
    }

    /// Ids of the containers that serve `stage` of the shop.
    pub(crate) async fn serving(&self, stage: &str) -> Vec<String> {
        let status = self.json(&["status", "shop", stage]).await;
        let instances = status["instances"].as_array().expect("a list").iter();
        let serving = instances.filter(|instance| instance["deployment"] == status["current"]["deployment"]);
        serving.map(|instance| instance["container"].as_str().expect("an id").to_owned()).collect()
    }

    /// Pushes an image to the registry under `shop:<tag>`; its full reference.
    pub(crate) async fn push(&self, image: SampleImage, tag: &str) -> String {
        let local = format!("sluice-e2e-{}:{tag}", self.registry.address().replace([':', '.'], "-"));
        image.load(&self.docker, &local).await.expect("loaded");
        let reference = self.registry.push(&self.docker, &local, &format!("shop:{tag}")).await.expect("pushed");
        // Only the registry has it from here on: deploying must pull.
        self.forget(&[&local, &reference]).await;
        reference
    }

    /// Takes images away from the engine.
    pub(crate) async fn forget(&self, names: &[&str]) {
        for name in names {
            self.docker.client().remove_image(name, None::<RemoveImageOptions>, None).await.expect("removed");
        }
    }

    /// GET through the edge: status and body.
    pub(crate) async fn get(&self, host: &str, path: &str) -> (u16, String) {
        let request = reqwest::Client::new().get(format!("http://{}{path}", self.edge)).header("host", host);
        let response = request.send().await.expect("the edge answers");
        (response.status().as_u16(), response.text().await.expect("a body"))
    }

    /// Waits until a step of the deployment is done.
    pub(crate) async fn step_done(&self, deployment: &str, step: &str) {
        let done = async {
            loop {
                let shown = self.json(&["deployment", deployment]).await;
                if shown["steps"].as_array().is_some_and(|steps| steps.iter().any(|s| s["step"] == step)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(COMMAND_LIMIT, done).await.unwrap_or_else(|_| panic!("{step} is not reached:\n{}", self.log_text()));
    }

    pub(crate) fn log_text(&self) -> String {
        self.installation.log_text()
    }
}

//! The ways a deployment can go, each on a stage of its own.

/// Declared as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strategy {
    BlueGreen,
    Recreate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Succeeds,
    /// Called off while the new containers are not yet healthy.
    CancelledInHealth,
    /// Called off after the switch.
    CancelledInBake,
    /// Never healthy: undone before the switch.
    FailsInHealth,
    /// Falls ill after the switch: rolled back.
    FailsInBake,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lane {
    pub(crate) strategy: Strategy,
    pub(crate) path: Path,
}

/// What is deployed: tags of one repository.
pub(crate) const FIRST: &str = "first";
pub(crate) const GOOD: &str = "good";
pub(crate) const SLOW: &str = "slow";
pub(crate) const BROKEN: &str = "broken";

pub(crate) const PROJECT: &str = "walk";

pub(crate) fn all() -> Vec<Lane> {
    use Path::{CancelledInBake, CancelledInHealth, FailsInBake, FailsInHealth, Succeeds};
    let paths = [Succeeds, CancelledInHealth, CancelledInBake, FailsInHealth, FailsInBake];
    let both = [Strategy::BlueGreen, Strategy::Recreate];
    both.into_iter().flat_map(|strategy| paths.map(|path| Lane { strategy, path })).collect()
}

impl Lane {
    pub(crate) fn stage(self) -> String {
        let path = match self.path {
            Path::Succeeds => "succeeds",
            Path::CancelledInHealth => "cancelled-in-health",
            Path::CancelledInBake => "cancelled-in-bake",
            Path::FailsInHealth => "fails-in-health",
            Path::FailsInBake => "fails-in-bake",
        };
        format!("{}-{path}", self.strategy())
    }

    pub(crate) fn host(self) -> String {
        format!("{}.test", self.stage())
    }

    fn strategy(self) -> &'static str {
        match self.strategy {
            Strategy::BlueGreen => "blue-green",
            Strategy::Recreate => "recreate",
        }
    }

    /// The tag that takes this way.
    pub(crate) fn tag(self) -> &'static str {
        match self.path {
            Path::Succeeds | Path::CancelledInBake | Path::FailsInBake => GOOD,
            Path::CancelledInHealth => SLOW,
            Path::FailsInHealth => BROKEN,
        }
    }

    /// The event after which the driver calls the deployment off, or spoils it.
    pub(crate) fn turns_at(self) -> Option<&'static str> {
        match self.path {
            Path::Succeeds | Path::FailsInHealth => None,
            Path::CancelledInHealth => Some("created"),
            Path::CancelledInBake | Path::FailsInBake => Some("switched"),
        }
    }

    /// Its stage, indented for a project's file. Before the first release everything has time.
    fn declared(self, first: bool) -> String {
        let long = "600s";
        let (start_period, bake) = match (first, self.path) {
            (true, _) => ("60s", "0s"),
            (false, Path::Succeeds) => ("60s", "300ms"),
            (false, Path::CancelledInHealth) => (long, "300ms"),
            (false, Path::CancelledInBake | Path::FailsInBake) => ("60s", long),
            (false, Path::FailsInHealth) => ("1s", "300ms"),
        };
        format!(
            "  {}:
    route: {{host: {}}}
    health: {{check: http, path: /healthz, interval: 100ms, timeout: 2s, retries: 2, start_period: {start_period}}}
    strategy: {}
    bake: {bake}
    drain: 60s
    stop_grace: 2s
    keep: 1
",
            self.stage(),
            self.host(),
            self.strategy()
        )
    }
}

/// The project's file.
pub(crate) fn project(lanes: &[Lane], first: bool) -> String {
    let stages: String = lanes.iter().map(|lane| lane.declared(first)).collect();
    format!("project: {PROJECT}\nstages:\n{stages}")
}

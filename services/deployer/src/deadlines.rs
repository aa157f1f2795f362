//! How long things may take. Everything that waits for another process has its limit here, or in the stage's settings.

use std::time::Duration;

use domain::{
    settings::HealthCheck,
    stage::{Rollout, Step},
};

/// The limits of a deployer. What a stage sets for itself (health, bake, drain, stop grace) comes on top.
#[derive(Debug, Clone)]
pub struct Deadlines {
    /// Whether the engine is there at all.
    pub alive: Duration,
    /// An answer of the engine that only moves metadata.
    pub quick: Duration,
    /// One that may have to wait for disks: create, start, remove, and stop beyond its grace.
    pub slow: Duration,
    /// What a registry says of a reference. Who asks for it waits no longer than half a minute.
    pub registry: Duration,
    /// A whole pull, as long as it makes progress.
    pub pull: Duration,
    /// A pull that makes none.
    pub pull_silence: Duration,
    /// All containers of a release, created and started.
    pub create: Duration,
    /// A change of the route until every edge has confirmed it, and what comes before it.
    pub route: Duration,
    /// Beyond what a stage allows for its health, bake and drain.
    pub spare: Duration,
    /// Beyond the grace for containers that stop, are removed, or are brought back.
    pub undo: Duration,
    /// Between two looks at whether the node holds what the log says.
    pub sweep: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            alive: seconds(5),
            quick: seconds(30),
            slow: seconds(120),
            registry: seconds(15),
            pull: seconds(1800),
            pull_silence: seconds(90),
            create: seconds(120),
            route: seconds(40),
            spare: seconds(30),
            undo: seconds(120),
            sweep: seconds(60),
        }
    }
}

impl Deadlines {
    /// How long `step` may take before it has failed. The step's own limits come first, with a better message.
    pub(crate) fn of(&self, step: Step, rollout: &Rollout) -> Duration {
        let settings = &rollout.spec.settings;
        let previous = rollout.previous.as_ref().map(|release| &release.spec.settings);
        let grace = previous.map_or(Duration::ZERO, |s| s.stop_grace.duration()).max(settings.stop_grace.duration());
        match step {
            Step::Pull => self.pull,
            Step::Hold | Step::Rehold | Step::Switch | Step::Revert => self.route,
            Step::Create => self.create,
            Step::AwaitHealthy => self.health(&settings.health),
            Step::Bake => settings.bake.duration() + self.spare,
            Step::Drain => previous.map_or(Duration::ZERO, |s| s.drain.duration()) + self.spare,
            Step::Retire => grace + self.undo,
            Step::Discard => grace + settings.drain.duration() + self.undo,
            // A stop that was begun before has to come to its end first.
            Step::Restore => grace + previous.map_or(Duration::ZERO, |s| self.health(&s.health)) + self.undo,
        }
    }

    fn health(&self, check: &HealthCheck) -> Duration {
        check.limit().duration() + self.spare
    }
}

//! Which moments there are, which of them were struck, and where each deployment stands.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use domain::DeploymentId;

use crate::{
    lane::Lane,
    moments::{Moment, What},
};

/// What happened so shortly before a kill is what it struck.
const JUST_NOW: Duration = Duration::from_millis(10);

/// A lane and its deployment that is on its way.
pub(crate) struct Place {
    pub(crate) lane: Lane,
    /// Everything that happens to a deployment that nobody disturbs, in order.
    pub(crate) expected: Vec<String>,
    pub(crate) struck: BTreeSet<String>,
    pub(crate) current: Option<DeploymentId>,
    /// Of the current deployment.
    pub(crate) outcome: Option<String>,
    /// Whether the driver has called it off, or spoiled it.
    pub(crate) turned: bool,
    /// Newest last.
    recent: Vec<(String, Instant)>,
}

const OUTCOMES: [&str; 5] = ["succeeded", "failed", "rolled_back", "cancelled", "superseded"];

impl Place {
    pub(crate) fn new(lane: Lane) -> Place {
        Place {
            lane,
            expected: vec![],
            struck: BTreeSet::new(),
            current: None,
            outcome: None,
            turned: false,
            recent: vec![],
        }
    }

    pub(crate) fn rest(&mut self) {
        self.current = None;
        self.outcome = None;
        self.turned = false;
        self.recent.clear();
    }

    /// Takes note of `moment`, and returns what it is called here.
    pub(crate) fn absorb(&mut self, moment: &Moment) -> Option<String> {
        let name = match &moment.what {
            What::Event(name) => {
                if name == "requested" && self.outcome.is_none() && self.current.is_none() {
                    self.current = Some(moment.deployment);
                }
                if self.current != Some(moment.deployment) {
                    return None;
                }
                if OUTCOMES.contains(&name.as_str()) {
                    self.outcome = Some(name.clone());
                }
                name.clone()
            }
            What::Container(action) => {
                let current = self.current?;
                let whose = if current == moment.deployment { "new" } else { "old" };
                format!("{whose} container: {action}")
            }
        };
        self.recent.push((name.clone(), moment.at));
        Some(name)
    }

    /// Whether the newest moment is one that is to be struck and was not yet.
    pub(crate) fn wants(&self) -> Option<&str> {
        self.at(Instant::now()).find(|name| self.expected.iter().any(|e| e == name) && !self.struck.contains(*name))
    }

    /// A kill at `when` struck the newest moment, and those that came with it.
    pub(crate) fn strike(&mut self, when: Instant) {
        let names: Vec<String> = self.at(when).map(str::to_owned).collect();
        self.struck.extend(names.into_iter().filter(|name| self.expected.contains(name)));
    }

    fn at(&self, when: Instant) -> impl Iterator<Item = &str> {
        let newest = self.recent.len().saturating_sub(1);
        let moments = self.recent.iter().enumerate();
        let just =
            moments.filter(move |(at, (_, then))| *at == newest || when.saturating_duration_since(*then) < JUST_NOW);
        just.map(|(_, (name, _))| name.as_str())
    }

    /// The newest moment.
    pub(crate) fn last(&self) -> Option<&str> {
        self.recent.last().map(|(name, _)| name.as_str())
    }

    pub(crate) fn left(&self) -> Vec<&str> {
        self.expected.iter().filter(|name| !self.struck.contains(*name)).map(String::as_str).collect()
    }

    /// The undisturbed deployment has ended: what happened to it is what will be struck, `each` time one of so many.
    pub(crate) fn learn(&mut self, each: usize) {
        let mut moments = Vec::new();
        for (name, _) in &self.recent {
            if !moments.contains(name) {
                moments.push(name.clone());
            }
        }
        self.expected = moments.into_iter().step_by(each).collect();
    }
}

#[test]
fn a_kill_counts_for_the_newest_moment_and_what_came_just_before() {
    let lane = crate::lane::all()[0];
    let deployment = "01a20000-0000-7000-8000-000000000001".parse::<DeploymentId>().expect("an id");
    let start = Instant::now();
    let tell = |place: &mut Place, name: &str, after: u64| {
        let at = start + Duration::from_millis(after);
        place.absorb(&Moment { stage: lane.stage(), deployment, what: What::Event(name.into()), at });
    };
    let mut place = Place::new(lane);
    for (at, name) in ["requested", "dispatched", "started", "succeeded"].into_iter().enumerate() {
        tell(&mut place, name, 100 * at as u64);
    }
    assert_eq!(place.outcome.as_deref(), Some("succeeded"));
    place.learn(1);
    place.rest();
    assert_eq!(place.wants(), None, "nothing is on its way");
    tell(&mut place, "requested", 1000);
    tell(&mut place, "dispatched", 1001);
    assert!(place.wants().is_some());
    place.strike(start + Duration::from_millis(1002));
    assert_eq!(place.left(), ["started", "succeeded"]);
    tell(&mut place, "started", 2000);
    tell(&mut place, "succeeded", 3000);
    place.strike(start + Duration::from_millis(3001));
    assert_eq!(place.left(), ["started"], "it was over long before the kill");
    place.rest();
    tell(&mut place, "requested", 4000);
    assert_eq!(place.wants(), None, "this was struck before");
}

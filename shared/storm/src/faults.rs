//! Doing the damage, and taking it back.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    keeper::Keeper,
    net,
    outages::{Cause, Outages},
    parts::Lab,
    schedule::{Fault, Part},
};

/// Of a slow database: it gets the rest of each of these for itself.
const ROUND: Duration = Duration::from_millis(140);
const STOPPED: Duration = Duration::from_millis(120);
/// What others free on a full disk is filled again this often.
const REFILL: Duration = Duration::from_millis(20);

/// What faults are done to.
pub(crate) struct World {
    pub(crate) lab: Arc<Lab>,
    pub(crate) keepers: BTreeMap<Part, Keeper>,
    pub(crate) outages: Outages,
}

impl World {
    /// Does it and, when its time is over, takes it back.
    pub(crate) async fn strike(&self, fault: &Fault) -> Result<()> {
        let repairs = self.hinders_repairs(fault);
        if repairs {
            self.outages.disturb();
        }
        let done = self.carry_out(fault).await;
        if repairs {
            self.outages.leave_in_peace();
        }
        done
    }

    /// Whether the edge may be kept from hearing of new addresses of containers.
    fn hinders_repairs(&self, fault: &Fault) -> bool {
        let repairer = |part: &Part| matches!(part, Part::Deployer | Part::Nats | Part::Engine | Part::Edge);
        match fault {
            Fault::Kill { part, .. } | Fault::Stop { part, .. } => repairer(part),
            Fault::Cut { from, to, .. } => repairer(from) && repairer(to),
            Fault::KillAll { .. } | Fault::FullDisk { .. } => true,
            Fault::SlowDatabase { .. } | Fault::Clock { .. } => false,
        }
    }

    async fn carry_out(&self, fault: &Fault) -> Result<()> {
        let until = Instant::now() + Duration::from_millis(fault.lasts());
        match fault {
            Fault::Kill { part, down_ms } => {
                self.kill(*part, Duration::from_millis(*down_ms));
                sleep_until(until).await;
            }
            Fault::KillAll { down_ms } => {
                for part in Part::RUNNING {
                    self.kill(part, Duration::from_millis(*down_ms));
                }
                sleep_until(until).await;
            }
            Fault::Stop { part, .. } => self.stop(*part, until).await,
            Fault::Cut { from, to, both, .. } => self.cut(*from, *to, *both, until).await?,
            Fault::FullDisk { .. } => fill(&self.lab.nats_disk(), until).await?,
            Fault::SlowDatabase { .. } => self.slow(Part::Postgres, until).await,
            Fault::Clock { part, seconds, .. } => {
                self.lab.set_clock(*part, *seconds)?;
                sleep_until(until).await;
                self.lab.set_clock(*part, 0)?;
            }
        }
        Ok(())
    }

    fn kill(&self, part: Part, down: Duration) {
        if part == Part::Edge {
            self.outages.begin(Cause::Killed(part));
        }
        self.keeper(part).kill(down);
    }

    async fn stop(&self, part: Part, until: Instant) {
        if part == Part::Edge {
            self.outages.begin(Cause::Stopped(part));
        }
        let pids = self.keeper(part).pids();
        Keeper::signal(&pids, Signal::STOP);
        sleep_until(until).await;
        Keeper::signal(&pids, Signal::CONT);
        self.outages.over(Cause::Stopped(part));
    }

    async fn slow(&self, part: Part, until: Instant) {
        while Instant::now() < until {
            let pids = self.keeper(part).pids();
            Keeper::signal(&pids, Signal::STOP);
            sleep(STOPPED).await;
            Keeper::signal(&pids, Signal::CONT);
            sleep(ROUND - STOPPED).await;
        }
    }

    async fn cut(&self, from: Part, to: Part, both: bool, until: Instant) -> Result<()> {
        let traffic = matches!(
            (from, to),
            (Part::Edge, Part::Clients | Part::Engine) | (Part::Clients | Part::Engine, Part::Edge)
        );
        if traffic {
            self.outages.begin(Cause::Cut(from, to));
        }
        net::cut(from, to, true).await?;
        if both {
            net::cut(to, from, true).await?;
        }
        sleep_until(until).await;
        net::cut(from, to, false).await?;
        if both {
            net::cut(to, from, false).await?;
        }
        self.outages.over(Cause::Cut(from, to));
        Ok(())
    }

    fn keeper(&self, part: Part) -> &Keeper {
        &self.keepers[&part]
    }
}

/// Until then, whatever becomes free is taken at once.
async fn fill(disk: &Path, until: Instant) -> Result<()> {
    let path = disk.join("ballast");
    let mut ballast = File::create(&path).context("filling the disk")?;
    while Instant::now() < until {
        // Pages, for files on this disk consist of them.
        for size in [1 << 20, 1 << 16, 1 << 12] {
            while ballast.write_all(&vec![1; size]).is_ok() {}
        }
        sleep(REFILL).await;
    }
    fs::remove_file(&path).context("freeing the disk")
}

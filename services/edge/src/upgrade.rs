//! What becomes of two connections once both ends have agreed to speak something else than HTTP on them.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::set::Claim;

/// Passes on what either side says, until both have ended or the set is cut. The claim lasts as long.
pub(crate) async fn tunnel(client: OnUpgrade, upstream: OnUpgrade, claim: Claim) {
    let both = async {
        let (client, upstream) = tokio::try_join!(client, upstream)?;
        // How it ends is the business of the two that talk.
        let _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(upstream)).await;
        Ok::<(), hyper::Error>(())
    };
    tokio::select! {
        ended = both => if let Err(error) = ended {
            tracing::debug!(%error, "an upgrade was agreed on and did not come about");
        },
        () = claim.cut_token().cancelled() => {}
    }
}

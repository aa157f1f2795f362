use std::os::unix::fs::PermissionsExt;

use eventlog::{Config, ConnectError, Error, EventLog, Secret, vault};
use testkit::{LossyDisk, Luck, Names, Nats};

use crate::{bare, config, start};

async fn with_key(nats: &Nats, key: &std::path::Path) -> Result<EventLog, ConnectError> {
    EventLog::connect(&Config { master_key: Some(key.to_owned()), ..config(nats) }).await
}

#[tokio::test]
async fn a_secret_is_sealed_before_it_leaves() {
    let nats = Nats::start().await.expect("starts");
    let directory = tempfile::tempdir().expect("a directory");
    let key = directory.path().join("master.key");
    vault::create_key(&key).expect("created");
    let vault = with_key(&nats, &key).await.expect("opens").vault();

    let first = vault.put("registry/r_test=5000", &Secret::new("hunter2")).await.expect("kept");
    let second = vault.put("registry/r_test=5000", &Secret::new("hunter3")).await.expect("kept");
    assert!(second > first);
    let secret = vault.get("registry/r_test=5000").await.expect("answers").expect("is there");
    assert_eq!(secret.expose(), b"hunter3");
    assert_eq!(format!("{secret:?}"), "Secret(..)");
    assert_eq!(vault.get("other").await.expect("answers"), None);

    // Neither on the wire nor at rest, and the earlier value not at all.
    let raw = bare(&nats).await.request("$JS.API.DIRECT.GET.KV_vault.$KV.vault.registry/r_test=5000", "".into()).await;
    let raw = raw.expect("answers").payload;
    assert!(!raw.windows(6).any(|bytes| bytes == b"hunter"), "{raw:?}");
    // Under another name the same bytes are worth nothing.
    bare(&nats).await.request("$KV.vault.other", raw).await.expect("stored");
    let moved = vault.get("other").await;
    assert!(matches!(moved, Err(Error::Vault(vault::Problem::Unsealable { .. }))), "{moved:?}");
    vault.delete("other").await.expect("deleted");
    assert_eq!(vault.get("other").await.expect("answers"), None);

    let foreign = directory.path().join("foreign.key");
    vault::create_key(&foreign).expect("created");
    let foreign = with_key(&nats, &foreign).await.expect("opens").vault();
    let refused = foreign.get("registry/r_test=5000").await;
    assert!(matches!(refused, Err(Error::Vault(vault::Problem::Unsealable { .. }))), "{refused:?}");
}

#[tokio::test]
async fn without_a_key_the_vault_stays_shut() {
    let (_nats, log) = start().await;
    let refused = log.vault().put("a", &Secret::new("x")).await;
    assert!(matches!(refused, Err(Error::Vault(vault::Problem::NoKey))), "{refused:?}");
}

#[test]
fn a_key_that_was_made_survives_a_power_loss() {
    for luck in [Luck::None, Luck::Seeded(1), Luck::Seeded(2)] {
        let disk = LossyDisk::mount(Names::Posix).expect("mounts");
        let key = disk.path().join("master.key");
        vault::create_key(&key).expect("created");
        let made = std::fs::read(&key).expect("readable");
        disk.power_loss(&[], luck).expect("the power comes back");
        assert_eq!(std::fs::read(&key).expect("is there"), made);
    }
}

#[tokio::test]
async fn a_key_is_made_once_and_kept_from_others() {
    let nats = Nats::start().await.expect("starts");
    let directory = tempfile::tempdir().expect("a directory");
    let key = directory.path().join("master.key");
    vault::create_key(&key).expect("created");
    let made = std::fs::read(&key).expect("readable");
    vault::create_key(&key).expect("found");
    assert_eq!(std::fs::read(&key).expect("readable"), made);
    assert_eq!((made.len(), std::fs::metadata(&key).expect("is there").permissions().mode() & 0o777), (32, 0o600));
    assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 1, "no draft stays behind");

    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).expect("changed");
    let refused = with_key(&nats, &key).await.err().expect("refused");
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("changed");
    std::fs::write(&key, [0; 31]).expect("written");
    assert!(matches!(with_key(&nats, &key).await, Err(ConnectError::Vault(_))));
    assert!(matches!(with_key(&nats, &directory.path().join("absent")).await, Err(ConnectError::Vault(_))));
}

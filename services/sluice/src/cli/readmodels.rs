//! What `sluice projector` prints.

use std::io;

use readmodel::Checksum;
use serde_json::json;

use super::{Globals, ui::Ui};

pub(crate) fn say_rebuilt(globals: &Globals, model: Option<&str>, sequence: u64) -> io::Result<()> {
    let ui = Ui::new(globals.json);
    ui.result(&json!({ "model": model, "sequence": sequence }), || {
        let what = model.map_or("every read model".to_owned(), |model| format!("read model {model}"));
        format!("rebuilt {what} from the first event to {sequence} and swapped it in")
    })
}

pub(crate) fn say_checksums(globals: &Globals, checksums: &[Checksum]) -> io::Result<()> {
    let ui = Ui::new(globals.json);
    if ui.json {
        return ui.document(&checksums);
    }
    let row = |c: &Checksum| [c.model.clone(), c.sequence.to_string(), c.rows.to_string(), c.checksum.clone()];
    ui.table(["MODEL", "SEQUENCE", "ROWS", "CHECKSUM"], checksums.iter().map(row).collect())
}

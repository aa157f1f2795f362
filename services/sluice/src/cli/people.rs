//! Names for the people whom the log knows by an id only.

use std::collections::BTreeMap;

use domain::UserId;
use serde_json::Value;

use crate::client::Client;

/// What an actor begins with who is a person.
const PERSON: &str = "user:";

/// Asks once for the names, and again for somebody who has come since.
pub(super) struct People<'a> {
    client: &'a Client,
    /// By id; of whom nobody knows any more, the id.
    names: BTreeMap<String, String>,
}

impl<'a> People<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        Self { client, names: BTreeMap::new() }
    }

    /// The document as people read it: with a name in the place of each `user:<id>`.
    pub(super) async fn named(&mut self, mut document: Value) -> Value {
        let mut met = Vec::new();
        each(&mut document, &mut |text| met.extend(text.strip_prefix(PERSON).map(str::to_owned)));
        self.meet(&met).await;
        each(&mut document, &mut |text| {
            if let Some(name) = text.strip_prefix(PERSON).and_then(|id| self.names.get(id)) {
                name.clone_into(text);
            }
        });
        document
    }

    pub(super) async fn name(&mut self, user: UserId) -> String {
        let id = user.to_string();
        self.meet(std::slice::from_ref(&id)).await;
        self.names.get(&id).cloned().unwrap_or(id)
    }

    /// That names cannot be had is no reason to show nothing.
    async fn meet(&mut self, ids: &[String]) {
        if ids.iter().all(|id| self.names.contains_key(id)) {
            return;
        }
        if let Ok(Value::Object(people)) = self.client.get("/people", &[]).await {
            let names = people.into_iter().filter_map(|(id, name)| Some((id, name.as_str()?.to_owned())));
            self.names.extend(names);
        }
        for id in ids {
            self.names.entry(id.clone()).or_insert_with(|| format!("{PERSON}{id}"));
        }
    }
}

fn each(document: &mut Value, what: &mut impl FnMut(&mut String)) {
    match document {
        Value::String(text) => what(text),
        Value::Array(items) => items.iter_mut().for_each(|item| each(item, what)),
        Value::Object(fields) => fields.values_mut().for_each(|field| each(field, what)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

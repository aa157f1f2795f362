//! Two documents compared field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A field that is not the same in both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// Path of names, joined by dots.
    #[schema(example = "health.interval")]
    pub field: String,
    /// None where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// None where it is not set any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

impl Difference {
    /// None where the two are the same.
    pub fn between(field: impl Into<String>, from: Option<Value>, to: Option<Value>) -> Option<Self> {
        (from != to).then(|| Self { field: field.into(), from, to })
    }
}

/// What is another in `new` than in `old`, by path. Lists are compared as a whole; what is null is not set.
pub fn differences(old: &Value, new: &Value) -> Vec<Difference> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    flatten(String::new(), old, &mut before);
    flatten(String::new(), new, &mut after);
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    paths
        .into_iter()
        .filter_map(|path| Difference::between(path, before.get(path).cloned(), after.get(path).cloned()))
        .collect()
}

fn flatten(path: String, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(path, value, into);
            }
        }
        Value::Object(_) | Value::Null => {}
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            into.insert(path, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_field_is_told_by_its_path_with_old_and_new() {
        let old = json!({"replicas": 1, "resources": {}, "env": {"A": "x"}, "list": [1], "same": 1});
        let new = json!({"replicas": 2, "route": {"host": "h"}, "list": [1, 2], "same": 1, "none": null});
        let told: Vec<_> = differences(&old, &new).into_iter().map(|d| (d.field, d.from, d.to)).collect();
        assert_eq!(
            told,
            [
                ("env.A".to_owned(), Some(json!("x")), None),
                ("list".to_owned(), Some(json!([1])), Some(json!([1, 2]))),
                ("replicas".to_owned(), Some(json!(1)), Some(json!(2))),
                ("route.host".to_owned(), None, Some(json!("h"))),
            ]
        );
        assert_eq!(differences(&new, &new), []);
    }
}

//! `sluice schema`: JSON Schemas of what people write, for editors, made from the description of the API.

use std::collections::BTreeSet;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::exit::{Code, Failure};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// What `sluice export` writes and `sluice apply` reads
    Configuration,
    /// `sluice.yaml`, which `sluice project apply` reads
    Project,
}

const REFERENCE: &str = "#/components/schemas/";

/// JSON Schema 2020-12: what OpenAPI 3.1 describes is that already, in another place.
pub(crate) fn schema(kind: Kind) -> Result<Value, Failure> {
    let unreadable = |what: &str| Failure::new(Code::Failed, "schema", format!("the description of the API {what}"));
    let mut api: Value = serde_json::from_str(api::openapi()).map_err(|error| unreadable(&error.to_string()))?;
    let all = api["components"]["schemas"].take();
    let of = |name: &str| all.get(name).cloned().ok_or_else(|| unreadable(&format!("lacks {name}")));
    let (title, mut root) = match kind {
        Kind::Configuration => ("Sluice: the whole configuration", of("Configuration")?),
        Kind::Project => ("Sluice: a project", project(of("Declaration")?)),
    };
    let mut needed = BTreeSet::new();
    move_references(&mut root, &mut needed);
    let mut definitions = Map::new();
    while let Some(name) = needed.pop_first() {
        let mut definition = of(&name)?;
        let mut more = BTreeSet::new();
        move_references(&mut definition, &mut more);
        definitions.insert(name, definition);
        needed.extend(more.into_iter().filter(|name| !definitions.contains_key(name)));
    }
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!(title);
    root["$defs"] = Value::Object(definitions);
    Ok(root)
}

/// The file is a declaration that also names its project.
fn project(mut declaration: Value) -> Value {
    declaration["properties"]["project"] = json!({
        "type": "string",
        "pattern": "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$",
        "description": "Slug of the project: a-z, 0-9 and -",
    });
    declaration["required"] = json!(["project"]);
    declaration
}

/// Has every reference point to `$defs`, and collects the names.
fn move_references(at: &mut Value, names: &mut BTreeSet<String>) {
    match at {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str().and_then(|text| text.strip_prefix(REFERENCE)).map(str::to_owned) {
                    Some(of) if name == "$ref" => {
                        *value = json!(format!("#/$defs/{of}"));
                        names.insert(of);
                    }
                    _ => move_references(value, names),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use domain::configuration::Configuration;

    use super::*;

    const README: &str = include_str!("../../../../README.md");

    fn validator(kind: Kind) -> jsonschema::Validator {
        jsonschema::draft202012::new(&schema(kind).expect("a schema")).expect("a good schema")
    }

    fn read(yaml: &str) -> Value {
        serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("not YAML: {error}\n{yaml}"))
    }

    #[track_caller]
    fn valid(kind: Kind, document: &Value) {
        let errors: Vec<String> =
            validator(kind).iter_errors(document).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert_eq!(errors, [""; 0], "{document:#}");
    }

    /// The YAML that stands in the README between `from` and `to`.
    fn examples(from: &str, to: &str) -> Vec<Value> {
        let behind = README.split(from).skip(1);
        behind.map(|text| read(text.split(to).next().expect("an end"))).collect()
    }

    #[test]
    fn what_the_readme_shows_is_valid() {
        let blocks = [examples("```yaml\n", "```"), examples("<<'YAML'\n", "YAML\n")].concat();
        let (projects, configurations): (Vec<_>, Vec<_>) =
            blocks.iter().partition(|document| document.get("project").is_some());
        assert!(projects.len() >= 2 && !configurations.is_empty(), "{projects:?} {configurations:?}");
        projects.into_iter().for_each(|document| valid(Kind::Project, document));
        configurations.into_iter().for_each(|document| valid(Kind::Configuration, document));
    }

    #[test]
    fn an_export_with_everything_in_it_is_valid() {
        let wanted = json!({
            "projects": { "shop": {
                "name": "The Shop", "auto_promote": true, "env": { "A": "x", "B": { "secret": "db" } },
                "stages": { "dev": { "image": "r.test/shop", "policy": {
                    "pattern": "main-(.*)", "order": "date", "allow": ["main.*"], "ignore": ["x"], "cooldown": "1h",
                } }, "prod": {
                    "image": "r.test/shop", "port": 8080, "replicas": 2, "strategy": "recreate", "bake": "10s",
                    "resources": { "memory": "256MiB", "cpus": 0.5, "pids": 200 },
                    "health": { "check": "http", "path": "/up", "status": 204, "interval": "1500ms" },
                    "drain": "1m", "stop_grace": "3s", "route": { "host": "shop.test", "path": "/a" },
                    "queue": "keep", "keep": 1, "promote_from": "dev", "env": { "A": { "secret": "db" } },
                    "gates": { "soak": "30m", "approvals": { "count": 2, "roles": ["operator"] }, "frozen": [
                        { "schedule": "0 16 * * FRI", "duration": "64h", "time_zone": "Europe/Berlin", "reason": "x" }
                    ] },
                } },
            } },
            "registries": { "r.test:5000": { "username": "ci", "poll": "5s", "url": "https://r.test" } },
            "hooks": { "ci": { "source": "plain", "project": "shop", "stage": "dev" } },
            "proxies": { "front": { "driver": "caddy", "edge": "127.0.0.1:8080" } },
        });
        let configuration: Configuration = serde_json::from_value(wanted).expect("a configuration");
        let exported = serde_saphyr::to_string(&configuration).expect("YAML");
        valid(Kind::Configuration, &read(&exported));
        valid(Kind::Configuration, &json!({}));
    }

    #[test]
    fn mistakes_are_marked_where_they_are() {
        let configuration = validator(Kind::Configuration);
        let stage = |settings: Value| json!({ "projects": { "shop": { "stages": { "dev": settings } } } });
        for (wrong, path) in [
            (json!({ "project": {} }), ""),
            (stage(json!({ "replica": 2 })), "/projects/shop/stages/dev"),
            (stage(json!({ "replicas": "two" })), "/projects/shop/stages/dev/replicas"),
            (stage(json!({ "strategy": "yolo" })), "/projects/shop/stages/dev/strategy"),
            (stage(json!({ "drain": 30 })), "/projects/shop/stages/dev/drain"),
            (stage(json!({ "env": { "A": 1 } })), "/projects/shop/stages/dev/env/A"),
            (json!({ "registries": { "r.test": { "poll": 5 } } }), "/registries/r.test/poll"),
            (json!({ "hooks": { "images": {} } }), "/hooks/images"),
            (json!({ "proxies": { "front": { "driver": "haproxy" } } }), "/proxies/front/driver"),
        ] {
            let paths: Vec<String> =
                configuration.iter_errors(&wrong).map(|error| error.instance_path().to_string()).collect();
            assert_eq!(paths, [path], "{wrong}");
        }
        let project = validator(Kind::Project);
        for wrong in [json!({}), json!({ "project": "Shop" }), json!({ "project": "shop", "stage": {} })] {
            assert!(!project.is_valid(&wrong), "{wrong}");
        }
    }
}

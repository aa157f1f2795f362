//! `sluice.yaml`: a project as a file, and errors that name its line and field.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use domain::{Slug, env::Env, project::Declaration, settings::StageSettings};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

use super::exit::Failure;
use crate::client::{self, FieldProblem};

/// The largest declaration; the API's own limit.
pub(crate) const LIMIT: u64 = 1 << 20;

/// Of an error, in characters.
const LONGEST: usize = 2_000;

/// The file: a [`Declaration`] that also names its project.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    pub(crate) project: Slug,
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) auto_promote: Option<bool>,
    #[serde(default)]
    pub(crate) env: Option<Env>,
    #[serde(default)]
    pub(crate) stages: BTreeMap<Slug, StageSettings>,
}

impl Document {
    pub(crate) fn declaration(&self) -> Declaration {
        Declaration {
            name: self.name.clone(),
            auto_promote: self.auto_promote,
            env: self.env.clone(),
            stages: self.stages.clone(),
        }
    }
}

/// A file with its name, for errors, and its text.
pub(crate) struct Source {
    name: String,
    text: String,
}

/// Reads `path`, or standard input for `-`. Its size, in bytes, is checked before anything looks inside.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Source, Failure> {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let unreadable = |error: io::Error| {
        Failure::invalid(format!("{name} cannot be read: {error}"))
            .hint("give the file with `-f`, or `-f -` for standard input")
    };
    let mut bytes = Vec::new();
    let source: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path).map_err(unreadable)?) };
    source.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        let most = limit >> 20;
        return Err(Failure::invalid(format!("{name} is larger than {most} MiB: a declaration holds only settings")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        Failure::invalid(format!("{name} is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()))
    })?;
    Ok(Source { name, text })
}

impl Source {
    /// What the text says; an error names the line.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_saphyr::from_str_with_options(&self.text, limits()).map_err(|error| {
            let shown = serde_saphyr::render_options! { source_name: Some(self.name.as_str()) };
            let text = error.render_with_options(shown);
            // What is wrong may be of any length, and the error repeats it.
            let text: String = text.trim_start_matches("error: ").chars().take(LONGEST).collect();
            Failure::invalid(format!("{}: {text}", self.name))
        })
    }

    /// The declaration in it, with everything checked that can be checked without the server.
    pub(crate) fn parse(&self) -> Result<Document, Failure> {
        let document: Document = self.read()?;
        let problems: Vec<FieldProblem> = document
            .stages
            .iter()
            .flat_map(|(slug, settings)| settings.check(&format!("stages.{slug}")))
            .map(|error| FieldProblem { field: error.field, problem: error.problem })
            .collect();
        if problems.is_empty() { Ok(document) } else { Err(self.locate(problems)) }
    }

    /// What the server refused. It sees what only it can know, such as a route that is taken: that has a line as well.
    pub(crate) fn refused(&self, error: client::Error) -> Failure {
        match error {
            client::Error::Refused(mut problem) if !problem.errors.is_empty() => {
                let located = self.locate(std::mem::take(&mut problem.errors));
                Failure { errors: located.errors, ..Failure::from(problem) }
            }
            error => error.into(),
        }
    }

    /// The failure that these problems make, each with its line where the file has one for it.
    pub(crate) fn locate(&self, problems: Vec<FieldProblem>) -> Failure {
        // Parsed before without an error, so a tree of it exists as well.
        let tree = serde_saphyr::from_str_with_options::<Spanned<Node>>(&self.text, limits()).ok();
        let count = problems.len();
        let mut failure = Failure::invalid(match count {
            1 => format!("{} has a field that is not valid", self.name),
            _ => format!("{} has {count} fields that are not valid", self.name),
        });
        failure.errors = problems
            .into_iter()
            .map(|FieldProblem { field, problem }| match tree.as_ref().and_then(|tree| line(tree, &field)) {
                Some(line) => FieldProblem { field: format!("{}:{line}: {field}", self.name), problem },
                None => FieldProblem { field, problem },
            })
            .collect();
        failure
    }
}

/// Far above any honest declaration, far below what could exhaust memory or time.
fn limits() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_depth: 32,
            max_anchors: 1_000,
            max_aliases: 1_000,
            max_nodes: 250_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 8,
        },
    }
}

/// The shape of the file without its meaning: enough to find the line of a field.
enum Node {
    Map(BTreeMap<String, Spanned<Node>>),
    Leaf,
}

/// The line of `field`, or of the innermost part of its path that the file has.
fn line(root: &Spanned<Node>, field: &str) -> Option<u64> {
    let (mut at, mut rest, mut found) = (root, field, None);
    while let Node::Map(entries) = &at.value {
        // A name may hold dots itself, such as that of a registry.
        let behind = |name: &str| rest.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with('.'));
        let fitting = entries.iter().filter_map(|(name, inner)| Some((name.len(), inner, behind(name)?)));
        let Some((_, inner, behind)) = fitting.max_by_key(|(length, ..)| *length) else { break };
        (at, rest) = (inner, behind.trim_start_matches('.'));
        found = Some(at.referenced.line());
    }
    found
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Shape)
    }
}

struct Shape;

impl<'de> Visitor<'de> for Shape {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = map.next_entry()? {
            entries.insert(key, value);
        }
        Ok(Node::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Node::Leaf)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn parse(text: &str) -> Result<Document, Failure> {
        Source { name: "sluice.yaml".into(), text: text.into() }.parse()
    }

    fn refused(text: &str) -> String {
        let failure = parse(text).expect_err("refused");
        assert_eq!(failure.exit as u8, 2);
        let errors = failure.errors.iter().map(|e| format!("\n{}: {}", e.field, e.problem)).collect::<String>();
        failure.message + &errors
    }

    const GOOD: &str = "
project: shop
name: The shop
stages:
  dev:
    image: 127.0.0.1:5000/shop
    port: 8080
    env: { GREETING: hello }
    health: { check: http, path: /health, interval: 500ms }
    route: { host: shop.localhost }
  prod:
    strategy: recreate
    resources: { memory: 256MiB, cpus: 0.5 }
";

    #[test]
    fn a_declaration_is_read() {
        let document = parse(GOOD).expect("good");
        assert_eq!(document.project.as_str(), "shop");
        assert_eq!(document.stages.len(), 2);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        for (text, line, word) in [
            ("project: Shop\n", 1, "`Shop` is not a valid name"),
            ("project: shop\nstages:\n  Dev: {}\n", 3, "`Dev` is not a valid name"),
            ("project: shop\nstages:\n  dev:\n    replica: 2\n", 4, "replica"),
            ("project: shop\nstagse: {}\n", 2, "stagse"),
            ("project: shop\nstages:\n  dev:\n    drain: 30 parsecs\n", 4, "not a duration"),
            ("project: shop\nstages:\n  dev:\n    drain: 30\n", 4, "duration"),
            ("project: shop\nstages:\n  dev:\n    resources: { memory: lots }\n", 4, "not an amount of memory"),
            ("project: shop\nstages:\n  dev: {}\n  dev: {}\n", 4, "dev"),
            ("project: shop\nstages: [\n", 2, "expected mapping"),
            ("name: only\n", 1, "project"),
        ] {
            let error = refused(text);
            assert!(error.contains(word), "{text}: {error}");
            assert!(error.starts_with(&format!("sluice.yaml: line {line} ")), "{text}: line {line}: {error}");
        }
    }

    #[test]
    fn every_wrong_value_is_named_with_its_line_and_field() {
        let error = refused(
            "project: shop\nstages:\n  dev:\n    replicas: 0\n    health:\n      check: http\n  prod:\n    keep: 51\n",
        );
        for wanted in [
            "3 fields",
            "sluice.yaml:4: stages.dev.replicas: must be from 1 to 50",
            "sluice.yaml:6: stages.dev.health.path",
            "sluice.yaml:8: stages.prod.keep",
        ] {
            assert!(error.contains(wanted), "no `{wanted}` in: {error}");
        }
    }

    #[test]
    fn a_file_of_10_megabytes_is_refused_unread() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sluice.yaml");
        std::fs::write(&path, "a".repeat(10 << 20)).expect("written");
        let failure = read(&path, LIMIT).err().expect("refused");
        assert!(failure.message.contains("larger than 1 MiB"), "{}", failure.message);
        let missing = read(&dir.path().join("none"), LIMIT).err().expect("refused");
        assert!(missing.message.contains("cannot be read"), "{}", missing.message);
    }

    #[test]
    fn bombs_are_refused() {
        let env = (0..5_000).map(|i| format!("K{i}: v")).collect::<Vec<_>>().join(", ");
        let stages = (0..900).map(|i| format!("  s{i}: *s\n")).collect::<String>();
        let layers = (1..20).map(|i| format!("  s{i}: &b{i} [{}]\n", vec![format!("*b{}", i - 1); 10].join(", ")));
        for text in [
            format!("project: shop\nstages:\n  dev: &s\n    env: {{ {env} }}\n{stages}"),
            format!("project: shop\nstages:\n  s0: &b0 [lol]\n{}", layers.collect::<String>()),
            format!("project: shop\nstages:\n  dev: {}", "{env: ".repeat(100_000)),
            format!("project: shop\nstages: {}", "[".repeat(100_000)),
            format!("project: shop\n{}: 1", "k".repeat(900_000)),
            format!("project: {}", "x".repeat(900_000)),
        ] {
            let error = refused(&text);
            assert!(error.chars().count() < LONGEST + 100, "{} characters", error.chars().count());
        }
    }

    #[test]
    fn a_field_under_a_name_with_dots_has_its_line() {
        let text = "registries:\n  r.example.com:5000:\n    username: ci\n  r.example:\n    username: x\n".to_owned();
        let source = Source { name: "all.yaml".into(), text };
        let located = |field: &str| {
            let problem = FieldProblem { field: field.to_owned(), problem: "no".into() };
            source.locate(vec![problem]).errors.remove(0).field
        };
        assert!(located("registries.r.example.com:5000.username").starts_with("all.yaml:3: "));
        assert!(located("registries.r.example.password").starts_with("all.yaml:5: "));
        assert_eq!(located("projects.shop"), "projects.shop");
    }

    #[test]
    fn anchors_may_be_used_as_intended() {
        let document = parse("project: shop\nstages:\n  dev: &base { replicas: 2 }\n  prod: *base\n").expect("good");
        assert_eq!(document.stages.values().map(|s| s.replicas).collect::<Vec<_>>(), [2, 2]);
    }

    #[test]
    fn emptiness_is_said_so() {
        for empty in ["", "# only a comment\n", "---\n", "null\n"] {
            assert!(refused(empty).contains("sluice.yaml"), "{}", refused(empty));
        }
    }
}

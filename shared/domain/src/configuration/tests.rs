use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    Bytes, Span,
    env::{EnvValue, SecretRef},
    hook,
    route::{self, Host},
    settings::RouteSettings,
};

fn slug(text: &str) -> Slug {
    text.parse().expect("a good name")
}

fn read(document: Value) -> Configuration {
    serde_json::from_value(document).expect("a configuration")
}

fn settings() -> impl Strategy<Value = StageSettings> {
    let host = prop::option::of((0..4_u8, prop::bool::ANY));
    (host, 1..3_u16, prop::option::of(1..9_u64), prop::bool::ANY, 0..3_u64).prop_map(
        |(host, replicas, memory, secret, interval)| {
            let mut settings = StageSettings {
                replicas,
                route: host.map(|(host, root)| RouteSettings {
                    host: format!("h{host}.test"),
                    path: if root { "/" } else { "/shop" }.into(),
                    proxy: None,
                }),
                ..StageSettings::default()
            };
            settings.resources.memory = memory.map(|mib| Bytes::new(mib << 24));
            settings.health.interval = Span::secs(interval + 1);
            if secret {
                let reference = SecretRef { secret: "db".into(), version: None, vault: None };
                settings.env.insert("PASSWORD".into(), EnvValue::Secret(reference));
            }
            settings
        },
    )
}

fn configuration() -> impl Strategy<Value = Configuration> {
    let stages =
        prop::collection::btree_map(prop::sample::select(vec!["dev", "prod"]).prop_map(slug), settings(), 0..3);
    let name = prop::option::of(prop::sample::select(vec!["a", "Shop"]).prop_map(str::to_owned));
    let env = prop::collection::btree_map("[AB]", "[xy]".prop_map(|text: String| text.as_str().into()), 0..2);
    let project = (name, prop::bool::ANY, env, stages).prop_map(|(name, auto_promote, env, stages)| DeclaredProject {
        name,
        auto_promote,
        env,
        stages,
    });
    let projects = prop::collection::btree_map(prop::sample::select(vec!["a", "b", "c"]).prop_map(slug), project, 0..4);
    let registry = (prop::option::of("[uv]"), 1..3_u64).prop_map(|(username, minutes)| RegistrySettings {
        url: None,
        username,
        poll: Span::secs(60 * minutes),
    });
    let registries = prop::collection::btree_map("r[12]:5000", registry, 0..3);
    let hook = prop::option::of("r[12]:5000").prop_map(|registry| HookSettings {
        source: hook::Source::Github,
        registry,
        project: None,
        stage: None,
    });
    let hooks = prop::collection::btree_map(prop::sample::select(vec!["x", "y"]).prop_map(slug), hook, 0..3);
    (projects, registries, hooks).prop_map(|(projects, registries, hooks)| {
        let mut all = Configuration { projects, registries, hooks, proxies: BTreeMap::new() };
        // Nobody can hold what another has.
        let mut taken = BTreeSet::new();
        for settings in all.projects.values_mut().flat_map(|project| project.stages.values_mut()) {
            settings.route = settings.route.take().filter(|route| taken.insert(route.clone()));
        }
        all
    })
}

/// The aggregates that a configuration stands for.
struct World {
    projects: BTreeMap<Slug, Project>,
    hosts: BTreeMap<String, Host>,
}

impl World {
    fn of(configuration: &Configuration) -> Self {
        let projects =
            configuration.projects.iter().map(|(slug, project)| (slug.clone(), project.state(slug))).collect();
        let mut world = Self { projects, hosts: BTreeMap::new() };
        for (route, project, stage) in
            configuration.stages().filter_map(|(p, s, settings)| Some((settings.route.as_ref()?, p, s)))
        {
            world.claim(route, project, stage);
        }
        world
    }

    fn claim(&mut self, route: &RouteSettings, project: &Slug, stage: &Slug) {
        let (path, project, stage) = (route.path.clone(), project.clone(), stage.clone());
        self.decide(&route.host, route::Command::Claim { path, project, stage });
    }

    fn decide(&mut self, host: &str, command: route::Command) {
        let host = self.hosts.entry(host.to_owned()).or_default();
        let events = host.decide(command).expect("nobody else holds it");
        events.iter().for_each(|event| host.evolve(event));
    }

    /// Carries out a group as one transaction: releases, then claims. The number of the projects' events.
    fn carry_out(&mut self, group: &Group) -> usize {
        let (mut released, mut claimed, mut count) = (vec![], vec![], 0);
        for (slug, command) in group {
            let state = self.projects.entry(slug.clone()).or_default();
            let before = state.routes();
            let events = state.decide(command.clone()).expect("accepted");
            events.iter().for_each(|event| state.evolve(event));
            let after = state.routes();
            released
                .extend(before.difference(&after).map(|(route, stage)| (route.clone(), slug.clone(), stage.clone())));
            claimed
                .extend(after.difference(&before).map(|(route, stage)| (route.clone(), slug.clone(), stage.clone())));
            count += events.len();
        }
        for (RouteSettings { host, path, proxy: _ }, project, stage) in released {
            self.decide(&host, route::Command::Release { path, project, stage });
        }
        for (route, project, stage) in claimed {
            self.claim(&route, &project, &stage);
        }
        count
    }

    fn read(&self) -> BTreeMap<Slug, DeclaredProject> {
        let open = self.projects.iter().filter(|(_, project)| !project.archived);
        open.map(|(slug, project)| {
            let Project { name, auto_promote, env, stages, .. } = project.clone();
            let name = name.expect("created");
            (slug.clone(), DeclaredProject::new(slug.as_str(), &name, auto_promote, env, stages))
        })
        .collect()
    }
}

fn plan(current: &Configuration, wanted: &Configuration, prune: bool) -> Plan {
    Plan::of(current, wanted, prune).expect("JSON")
}

/// Names that say nothing are not told from names that were left out.
fn normal(mut configuration: Configuration) -> Configuration {
    for (slug, project) in &mut configuration.projects {
        project.name.take_if(|name| name == slug.as_str());
    }
    configuration
}

proptest! {
    #[test]
    fn what_was_carried_out_is_what_was_wanted(
        current in configuration(),
        wanted in configuration(),
        prune in prop::bool::ANY,
        backwards in prop::bool::ANY,
    ) {
        prop_assume!(current.check(&wanted, prune).is_empty());
        let mut groups = current.groups(&wanted, prune);
        if backwards {
            groups.reverse();
        }
        let mut world = World::of(&current);
        for group in &groups {
            world.carry_out(group);
        }
        let after = normal(current.with(&wanted, prune));
        prop_assert_eq!(world.read(), after.projects.clone());
        // Nothing is left to do, neither by the plan nor by the projects themselves.
        prop_assert_eq!(plan(&after, &wanted, prune).changes, vec![]);
        prop_assert!(after.groups(&wanted, prune).is_empty());
        for group in groups.iter().filter(|group| !group.values().any(|c| matches!(c, project::Command::Archive))) {
            prop_assert_eq!(world.carry_out(group), 0);
        }
    }

    #[test]
    fn a_plan_is_empty_exactly_where_nothing_is_to_be_done(
        current in configuration(),
        wanted in configuration(),
        prune in prop::bool::ANY,
    ) {
        let changes = plan(&current, &wanted, prune).changes;
        prop_assert!(plan(&current, &current, prune).changes.is_empty());
        prop_assert_eq!(changes.is_empty(), normal(current.with(&wanted, prune)) == normal(current.clone()));
        let of_projects = changes.iter().any(|change| matches!(change.kind, Kind::Project | Kind::Stage));
        prop_assert_eq!(of_projects, !current.groups(&wanted, prune).is_empty());
        for change in &changes {
            let bare = matches!(change.kind, Kind::Stage | Kind::Registry);
            prop_assert!(change.action == Action::Remove || bare || !change.fields.is_empty());
        }
    }

    #[test]
    fn the_document_reads_back_as_it_was_and_is_written_alike(configuration in configuration()) {
        let text = serde_json::to_string(&configuration).expect("JSON");
        let back: Configuration = serde_json::from_str(&text).expect("readable");
        prop_assert_eq!(&back, &configuration);
        prop_assert_eq!(serde_json::to_string(&back).expect("JSON"), text);
    }
}

#[test]
fn defaults_are_left_out() {
    let document = json!({"projects": {"shop": {"stages": {
        "dev": {},
        "prod": {"replicas": 2, "health": {"check": "tcp"}, "env": {"A": {"secret": "db"}}}
    }}}});
    assert_eq!(json!(read(document.clone())), document);
    assert_eq!(json!(Configuration::default()), json!({}));
}

#[test]
fn a_plan_tells_every_field_with_old_and_new_and_what_is_left_alone() {
    let current = read(json!({
        "projects": {
            "blog": {"stages": {"prod": {}}},
            "shop": {"name": "Shop", "stages": {"dev": {"replicas": 2}, "old": {}}},
        },
        "registries": {"r:1": {"username": "ci"}},
    }));
    let wanted = read(json!({"projects": {"shop": {
        "name": "The Shop",
        "stages": {"dev": {"replicas": 3, "port": 80}, "prod": {"replicas": 2}}
    }}}));
    let told = |plan: &Plan| -> Vec<String> {
        let changes = plan.changes.iter().map(|change| {
            let fields: Vec<String> =
                change.fields.iter().map(|d| format!("{} {}->{}", d.field, json!(d.from), json!(d.to))).collect();
            format!("{:?} {:?} {}: {}", change.action, change.kind, change.name, fields.join(", "))
        });
        changes.chain(plan.left_alone.iter().map(|named| format!("leave {:?} {}", named.kind, named.name))).collect()
    };
    assert_eq!(
        told(&plan(&current, &wanted, false)),
        [
            r#"Change Project shop: name "Shop"->"The Shop""#,
            "Change Stage shop/dev: port null->80, replicas 2->3",
            "Create Stage shop/prod: replicas null->2",
            "leave Registry r:1",
            "leave Project blog",
            "leave Stage shop/old",
        ]
    );
    assert_eq!(
        told(&plan(&current, &wanted, true)),
        [
            "Remove Registry r:1: ",
            "Remove Project blog: ",
            r#"Change Project shop: name "Shop"->"The Shop""#,
            "Remove Stage blog/prod: ",
            "Change Stage shop/dev: port null->80, replicas 2->3",
            "Remove Stage shop/old: ",
            "Create Stage shop/prod: replicas null->2",
        ]
    );
}

#[test]
fn projects_that_pass_a_route_on_change_together() {
    let on = |shop: &str, blog: &str| {
        read(json!({"projects": {
            "apart": {"stages": {"dev": {"route": {"host": format!("{shop}.apart")}}}},
            "blog": {"stages": {"dev": {"route": {"host": blog}}}},
            "shop": {"stages": {"dev": {"route": {"host": shop}}}},
        }}))
    };
    let names = |groups: Vec<Group>| -> Vec<Vec<String>> {
        groups.iter().map(|group| group.keys().map(ToString::to_string).collect()).collect()
    };
    let before = on("a.test", "b.test");
    assert_eq!(names(before.groups(&on("b.test", "a.test"), false)), [vec!["apart"], vec!["blog", "shop"]]);
    assert_eq!(names(before.groups(&on("c.test", "b.test"), false)), [vec!["apart"], vec!["shop"]]);
    // One that ends hands its route over as well.
    let mut without_shop = on("x.test", "a.test");
    without_shop.projects.remove(&slug("shop"));
    assert_eq!(names(before.groups(&without_shop, true)), [vec!["apart"], vec!["blog", "shop"]]);
    let fields: Vec<String> = before.check(&without_shop, false).into_iter().map(|error| error.field).collect();
    assert_eq!(fields, ["projects.blog.stages.dev.route"], "what is left alone keeps its route");
}

#[test]
fn more_than_one_decision_holds_is_refused() {
    let all = |stages: usize, shift: usize| {
        let project = |project: usize| {
            let stages = (0..stages).map(|n| {
                let host = format!("s{n}.p{}.test", (project + shift) % 3);
                (format!("s{n}"), json!({ "route": { "host": host } }))
            });
            (format!("p{project}"), json!({ "stages": stages.collect::<serde_json::Map<_, _>>() }))
        };
        read(json!({ "projects": (0..3).map(project).collect::<serde_json::Map<_, _>>() }))
    };
    let fields = |stages| -> Vec<String> {
        all(stages, 0).check(&all(stages, 1), false).into_iter().map(|error| error.field).collect()
    };
    assert_eq!(fields(66), [""; 0]);
    assert_eq!(fields(67), ["projects"]);
    assert_eq!(Configuration::default().check(&all(67, 0), false), [], "apart from one another they may be many");
}

#[test]
fn everything_that_is_wrong_is_told_by_its_path() {
    let wanted = read(json!({
        "projects": {
            "blog": {"stages": {"prod": {"route": {"host": "a.test"}}}},
            "shop": {
                "name": "",
                "stages": {"dev": {"replicas": 0, "promote_from": "nowhere"}, "prod": {"route": {"host": "a.test"}}},
            },
            "tool": {"stages": {"dev": {"keep": 99, "promote_from": "nowhere"}}},
        },
        "registries": {"R.test": {"username": "x"}, "a b": {"username": "x"}, "r:1": {"username": ""}},
    }));
    let fields: Vec<String> =
        Configuration::default().check(&wanted, false).into_iter().map(|error| error.field).collect();
    assert_eq!(
        fields,
        [
            "registries.R.test",
            "registries.a b",
            "registries.r:1.username",
            "projects.shop.name",
            "projects.tool.stages.dev.keep",
            "projects.tool.stages.dev.promote_from",
            "projects.blog.stages.prod.route",
            "projects.shop.stages.prod.route",
        ]
    );
}

#[test]
fn pruning_a_source_is_refused_only_where_somebody_still_promotes_from_it() {
    let current = read(json!({"projects": {"shop": {"stages": {"dev": {}, "prod": {"promote_from": "dev"}}}}}));
    let only = |settings: Value| read(json!({"projects": {"shop": {"stages": {"prod": settings}}}}));
    let fields = |wanted: &Configuration, prune| -> Vec<String> {
        current.check(wanted, prune).into_iter().map(|error| error.field).collect()
    };
    let still = only(json!({"promote_from": "dev"}));
    assert_eq!(fields(&still, true), ["projects.shop.stages.prod.promote_from"]);
    assert_eq!(fields(&still, false), [""; 0]);
    assert_eq!(fields(&only(json!({})), true), [""; 0]);
}

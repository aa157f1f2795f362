//! What each sender says, and what of it matters: which repository has got which tag.

use std::collections::BTreeSet;

use domain::{
    hook::Source,
    image::{Reference, valid_tag},
    push::Pushed,
};
use http::HeaderMap;
use serde::{Deserialize, de::DeserializeOwned};

use crate::problem::Error;

/// Of one message.
const MOST: usize = 1_000;

/// The pushes in a message about the images of `registry`. Nothing of messages about other things.
pub(super) fn pushed(source: Source, registry: &str, headers: &HeaderMap, body: &[u8]) -> Result<Vec<Pushed>, Error> {
    let pushes = match source {
        Source::Distribution => distribution(read(body)?),
        Source::Dockerhub => dockerhub(read(body)?),
        Source::Github => {
            let event = headers.get("x-github-event").and_then(|event| event.to_str().ok()).unwrap_or_default();
            match event {
                "registry_package" | "package" => github(read(body)?),
                _ => vec![],
            }
        }
        Source::Gitea => gitea(read(body)?),
        Source::Harbor => harbor(read(body)?),
        Source::Plain => vec![],
    };
    let pushes = pushes.into_iter().filter(|(_, tag)| valid_tag(tag));
    let named = pushes.map(|(repository, tag)| Pushed { repository: format!("{registry}/{repository}"), tag });
    let good: BTreeSet<Pushed> = named.filter(|pushed| Reference::parse(&pushed.repository).is_ok()).collect();
    if good.len() > MOST {
        return Err(Error::Malformed(format!("a message tells of at most {MOST} images")));
    }
    Ok(good.into_iter().collect())
}

/// Repository without its registry, and tag.
type Push = (String, String);

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Malformed(format!("not what this source sends: {error}")))
}

#[derive(Deserialize)]
struct Distribution {
    events: Vec<DistributionEvent>,
}

#[derive(Deserialize)]
struct DistributionEvent {
    #[serde(default)]
    action: String,
    #[serde(default)]
    target: DistributionTarget,
}

#[derive(Default, Deserialize)]
struct DistributionTarget {
    #[serde(default)]
    repository: String,
    #[serde(default)]
    tag: String,
}

/// One push makes several events; the one with a tag is about the whole image.
fn distribution(message: Distribution) -> Vec<Push> {
    let pushes = message.events.into_iter().filter(|event| event.action == "push");
    pushes.map(|event| (event.target.repository, event.target.tag)).collect()
}

#[derive(Deserialize)]
struct Dockerhub {
    push_data: DockerhubPush,
    repository: DockerhubRepository,
}

#[derive(Deserialize)]
struct DockerhubPush {
    tag: String,
}

#[derive(Deserialize)]
struct DockerhubRepository {
    repo_name: String,
}

fn dockerhub(message: Dockerhub) -> Vec<Push> {
    vec![(message.repository.repo_name, message.push_data.tag)]
}

#[derive(Deserialize)]
struct Github {
    #[serde(alias = "registry_package")]
    package: Option<GithubPackage>,
}

#[derive(Deserialize)]
struct GithubPackage {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    owner: Owner,
    package_version: Option<GithubVersion>,
}

#[derive(Deserialize)]
struct GithubVersion {
    container_metadata: Option<GithubContainer>,
}

#[derive(Deserialize)]
struct GithubContainer {
    tag: Option<GithubTag>,
}

#[derive(Deserialize)]
struct GithubTag {
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
struct Owner {
    #[serde(default)]
    login: String,
    #[serde(default)]
    username: String,
}

fn github(message: Github) -> Vec<Push> {
    let Some(package) = message.package else { return vec![] };
    let tag = package.package_version.and_then(|version| version.container_metadata?.tag);
    let owner = if package.namespace.is_empty() { package.owner.login } else { package.namespace };
    // Images are named in lower case, whatever the account is called.
    let repository = format!("{owner}/{}", package.name).to_ascii_lowercase();
    tag.map(|tag| (repository, tag.name)).into_iter().collect()
}

#[derive(Deserialize)]
struct Gitea {
    #[serde(default)]
    action: String,
    package: Option<GiteaPackage>,
}

#[derive(Deserialize)]
struct GiteaPackage {
    #[serde(default)]
    r#type: String,
    name: String,
    /// The tag, or a digest for what has none.
    version: String,
    #[serde(default)]
    owner: Owner,
}

fn gitea(message: Gitea) -> Vec<Push> {
    let Some(package) = message.package else { return vec![] };
    if message.action != "created" || package.r#type != "container" {
        return vec![];
    }
    let Owner { login, username } = package.owner;
    let owner = if login.is_empty() { username } else { login };
    vec![(format!("{owner}/{}", package.name).to_ascii_lowercase(), package.version)]
}

#[derive(Deserialize)]
struct Harbor {
    #[serde(default)]
    r#type: String,
    /// `data` in the form of CloudEvents.
    #[serde(alias = "data")]
    event_data: Option<HarborData>,
}

#[derive(Deserialize)]
struct HarborData {
    #[serde(default)]
    resources: Vec<HarborResource>,
    repository: HarborRepository,
}

#[derive(Deserialize)]
struct HarborResource {
    #[serde(default)]
    tag: String,
}

#[derive(Deserialize)]
struct HarborRepository {
    repo_full_name: String,
}

fn harbor(message: Harbor) -> Vec<Push> {
    let Some(data) = message.event_data else { return vec![] };
    if !matches!(message.r#type.as_str(), "PUSH_ARTIFACT" | "harbor.artifact.pushed") {
        return vec![];
    }
    let HarborData { resources, repository: HarborRepository { repo_full_name } } = data;
    resources.into_iter().map(|resource| (repo_full_name.clone(), resource.tag)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(source: Source, event: &str, body: &Value) -> Vec<String> {
        let mut headers = HeaderMap::new();
        headers.insert("x-github-event", event.parse().expect("a header"));
        let pushed = pushed(source, "r.test", &headers, body.to_string().as_bytes()).expect("it reads");
        pushed.into_iter().map(|Pushed { repository, tag }| format!("{repository}:{tag}")).collect()
    }

    #[test]
    fn distribution_tells_of_pushes_with_a_tag() {
        let event = |action: &str, target: Value| json!({"id": "1", "action": action, "target": target});
        let body = json!({"events": [
            event("push", json!({"mediaType": "application/octet-stream", "repository": "team/shop"})),
            event("push", json!({"repository": "team/shop", "tag": "v1", "digest": "sha256:0"})),
            event("push", json!({"repository": "team/shop", "tag": "v1"})),
            event("pull", json!({"repository": "team/shop", "tag": "v2"})),
            event("delete", json!({"repository": "team/shop"})),
            event("push", json!({"repository": "../evil", "tag": "v1"})),
            event("push", json!({"repository": "team/shop", "tag": "a b"})),
        ]});
        assert_eq!(told(Source::Distribution, "", &body), ["r.test/team/shop:v1"]);
    }

    #[test]
    fn docker_hub_tells_of_one_tag() {
        let body = json!({
            "callback_url": "https://registry.hub.docker.com/u/team/shop/hook/x/",
            "push_data": {"pushed_at": 1, "pusher": "ana", "tag": "v1"},
            "repository": {"name": "shop", "namespace": "team", "repo_name": "team/shop", "status": "Active"}
        });
        assert_eq!(told(Source::Dockerhub, "", &body), ["r.test/team/shop:v1"]);
    }

    #[test]
    fn github_tells_of_packages_and_of_other_things() {
        let package = json!({
            "name": "shop", "namespace": "Team", "package_type": "CONTAINER", "owner": {"login": "Team"},
            "package_version": {"container_metadata": {"tag": {"name": "v1", "digest": "sha256:0"}}}
        });
        let registry_package = json!({"action": "published", "registry_package": package});
        assert_eq!(told(Source::Github, "registry_package", &registry_package), ["r.test/team/shop:v1"]);
        let mut without = package.clone();
        without.as_object_mut().expect("an object").remove("namespace");
        assert_eq!(told(Source::Github, "package", &json!({"package": without})), ["r.test/team/shop:v1"]);
        let untagged = json!({"package": {"name": "shop", "namespace": "team", "package_version":
            {"container_metadata": {"tag": {"name": ""}}}}});
        assert_eq!(told(Source::Github, "package", &untagged), Vec::<String>::new());
        assert_eq!(told(Source::Github, "ping", &json!({"zen": "Keep it logically awesome."})), Vec::<String>::new());
    }

    #[test]
    fn gitea_tells_of_containers() {
        let body = |action: &str, kind: &str, version: &str| {
            json!({"action": action, "package": {"type": kind, "name": "shop", "version": version,
                "owner": {"login": "Team", "username": "Team"}}})
        };
        assert_eq!(told(Source::Gitea, "", &body("created", "container", "v1")), ["r.test/team/shop:v1"]);
        for other in
            [body("deleted", "container", "v1"), body("created", "npm", "v1"), body("created", "container", "sha256:0")]
        {
            assert_eq!(told(Source::Gitea, "", &other), Vec::<String>::new(), "{other}");
        }
    }

    #[test]
    fn harbor_tells_in_two_forms() {
        let data = json!({"resources": [{"digest": "sha256:0", "tag": "v1", "resource_url": "r.test/team/shop:v1"}],
            "repository": {"name": "shop", "namespace": "team", "repo_full_name": "team/shop"}});
        let own = json!({"type": "PUSH_ARTIFACT", "occur_at": 1, "operator": "admin", "event_data": data});
        let cloud = json!({"specversion": "1.0", "type": "harbor.artifact.pushed", "data": data});
        for body in [own, cloud] {
            assert_eq!(told(Source::Harbor, "", &body), ["r.test/team/shop:v1"]);
        }
        assert_eq!(
            told(Source::Harbor, "", &json!({"type": "PULL_ARTIFACT", "event_data": data})),
            Vec::<String>::new()
        );
    }

    #[test]
    fn garbage_is_refused_and_too_much_is_too() {
        let headers = HeaderMap::new();
        for source in [Source::Distribution, Source::Dockerhub, Source::Gitea, Source::Harbor] {
            for body in [&b""[..], b"[]", b"{\"events\": 7, \"repository\": 7, \"package\": 7, \"data\": 7}", b"\xff"] {
                assert!(pushed(source, "r.test", &headers, body).is_err(), "{source:?}");
            }
        }
        let events: Vec<_> = (0..=MOST)
            .map(|n| json!({"action": "push", "target": {"repository": "shop", "tag": format!("v{n}")}}))
            .collect();
        let body = json!({ "events": events }).to_string();
        assert!(pushed(Source::Distribution, "r.test", &headers, body.as_bytes()).is_err());
    }
}

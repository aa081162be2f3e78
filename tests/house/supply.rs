//! What comes into the program is what `.ci/deny.toml` allows: licences, sources, and which
//! packages may be there twice. `cargo deny check --config .ci/deny.toml` says the same, and looks
//! for advisories.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, LicenseReq, ParseMode};

use crate::support::files::{read, repository};

fn table(file: &str) -> toml::Table {
    read(repository(file)).parse().unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The texts of a list.
fn texts(value: &toml::Value) -> BTreeSet<String> {
    let list = value.as_array().expect("a list").iter();
    list.map(|text| text.as_str().expect("a text").to_owned()).collect()
}

fn text<'t>(table: &'t toml::Value, key: &str) -> Option<&'t str> {
    table.get(key).and_then(toml::Value::as_str)
}

#[test]
fn packages_come_from_one_place_and_once() {
    let (deny, lock) = (table(".ci/deny.toml"), table("Cargo.lock"));
    let registries = texts(&deny["sources"]["allow-registry"]);
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock["package"].as_array().expect("packages") {
        let (name, version) = (text(package, "name").expect("a name"), text(package, "version"));
        versions.entry(name).or_default().extend(version);
        let Some(source) = text(package, "source") else {
            assert_eq!(name, "irepair", "has no source");
            continue;
        };
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        assert!(registries.contains(registry), "{name} comes from {source}");
        assert!(text(package, "checksum").is_some(), "{name} has no checksum");
    }
    let skipped: BTreeSet<&str> = deny["bans"]["skip"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|skip| text(skip, "crate").expect("a package"))
        .collect();
    let mut needed = BTreeSet::new();
    for (name, versions) in &versions {
        let (last, older) = versions.split_last().expect("a version");
        for version in older {
            let package = format!("{name}@{version}");
            assert!(skipped.contains(package.as_str()), "{package} is there beside {last}");
            needed.insert(package);
        }
    }
    for package in skipped {
        assert!(needed.contains(package), "deny.toml skips {package}, which is not there twice");
    }
}

/// The packages that this machine builds.
#[test]
fn licences_are_allowed() {
    let allowed = texts(&table(".ci/deny.toml")["licenses"]["allow"]);
    let host = Command::new(env!("CARGO")).args(["-vV"]).output().expect("cargo");
    let host = String::from_utf8(host.stdout).expect("utf-8");
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host");
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(["--filter-platform", host])
        .current_dir(repository(""))
        .output()
        .expect("cargo metadata");
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 200, "{}", packages.len());
    let is_allowed = |license: &LicenseReq| allowed.contains(&license.to_string());
    for package in packages {
        let (name, said) = (&package["name"], package["license"].as_str().unwrap_or_default());
        let license = Expression::parse_mode(said, ParseMode::LAX)
            .unwrap_or_else(|e| panic!("{name}: {said:?}: {e}"));
        assert!(license.evaluate(is_allowed), "{name}: {said}");
    }
}

//! An *arrow* leads from a module that uses another to the one that is used.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::findings::Files;
use super::source::{Source, Token};

/// Where a module stands: `["model", "kernels"]`. A folder and its `mod.rs` are one.
pub type Module = Vec<String>;

/// One use of a module by a file.
#[derive(Debug, Clone)]
pub struct Arrow {
    pub from: Module,
    pub to: Module,
    /// `src/model/mod.rs:7`
    pub place: String,
}

impl Arrow {
    /// The two siblings that it joins, whatever lies in them. None where one holds the other.
    pub fn siblings(&self) -> Option<(&[String], &[String])> {
        let shared = self.from.iter().zip(&self.to).take_while(|(a, b)| a == b).count();
        let lies_apart = shared < self.from.len() && shared < self.to.len();
        lies_apart.then(|| (&self.from[..=shared], &self.to[..=shared]))
    }
}

/// The module of a file in `src/`.
pub fn module_of(path: &str) -> Option<Module> {
    let path = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let mut module: Module = path.split('/').map(str::to_owned).collect();
    let last = module.last().map(String::as_str);
    if matches!((last, module.len()), (Some("mod"), _) | (Some("lib" | "main"), 1)) {
        module.pop();
    }
    Some(module)
}

/// The order of the modules in `src/lib.rs`.
pub fn order(files: &Files) -> Vec<String> {
    let tokens = files.get("src/lib.rs").map(|text| Source::read(text).tokens).unwrap_or_default();
    let declares = |w: &&[Token]| w[0].text == "mod" && w[2].text == ";";
    tokens.windows(3).filter(declares).map(|w| w[1].text.clone()).collect()
}

/// Every use of a module in `src/`. The binary uses the library by its name.
pub fn arrows(files: &Files) -> Vec<Arrow> {
    let modules: BTreeSet<Module> = files.keys().filter_map(|path| module_of(path)).collect();
    let mut arrows = Vec::new();
    for (path, text) in files {
        let Some(from) = module_of(path).filter(|_| path != "src/main.rs") else { continue };
        let mut paths = Paths { modules: &modules, names: BTreeMap::new(), found: BTreeSet::new() };
        paths.read(&Source::read(text).tokens, &from);
        // What stands twice on a line is one arrow.
        for (line, to) in paths.found {
            arrows.push(Arrow { from: from.clone(), to, place: format!("{path}:{line}") });
        }
    }
    arrows
}

/// The paths of a file, and the modules to which they lead.
struct Paths<'a> {
    modules: &'a BTreeSet<Module>,
    /// Modules that a `use` gave a name.
    names: BTreeMap<String, Module>,
    found: BTreeSet<(usize, Module)>,
}

impl Paths<'_> {
    fn read(&mut self, tokens: &[Token], file: &Module) {
        let word = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
        // Inner modules, with the depth of braces at which they end.
        let (mut inner, mut depth) = (Vec::<(String, usize)>::new(), 0);
        let mut at = 0;
        while at < tokens.len() {
            let here: Module =
                file.iter().chain(inner.iter().map(|(name, _)| name)).cloned().collect();
            match word(at) {
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    inner.pop_if(|(_, ends)| *ends == depth);
                }
                "mod" if word(at + 2) == "{" => inner.push((word(at + 1).to_owned(), depth)),
                "use" => {
                    at = self.tree(tokens, at + 1, &here, Vec::new());
                    continue;
                }
                // A path from its beginning; `a.b::<C>()` is none.
                _ if word(at + 1) == "::"
                    && !matches!(at.checked_sub(1).map(word), Some("::" | ".")) =>
                {
                    let mut path = vec![word(at).to_owned()];
                    let line = tokens[at].line;
                    while word(at + 1) == "::" && is_name(word(at + 2)) {
                        path.push(word(at + 2).to_owned());
                        at += 2;
                    }
                    self.add(&path, &here, line);
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Reads a tree of `use` from here on, and gives the place after it.
    fn tree(&mut self, tokens: &[Token], mut at: usize, here: &Module, mut path: Module) -> usize {
        let word = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
        let line = tokens.get(at).map_or(0, |t| t.line);
        loop {
            match word(at) {
                "{" => {
                    at += 1;
                    while !matches!(word(at), "}" | "") {
                        at = self.tree(tokens, at, here, path.clone());
                        at += usize::from(word(at) == ",");
                    }
                    return at + 1;
                }
                name if is_name(name) => path.push(name.to_owned()),
                _ => {}
            }
            if word(at + 1) != "::" {
                break;
            }
            at += 2;
        }
        if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
            path.pop();
        }
        let to = self.add(&path, here, line);
        let renamed = word(at + 1) == "as";
        let name = if renamed { Some(word(at + 2).to_owned()) } else { path.last().cloned() };
        if let (Some(name), Some((module, true))) = (name, to) {
            self.names.insert(name, module);
        }
        at += if renamed { 3 } else { 1 };
        at + usize::from(word(at) == ";")
    }

    /// Adds the module to which a path leads. It may also lead further, to a thing in that module.
    fn add(&mut self, path: &[String], here: &Module, line: usize) -> Option<(Module, bool)> {
        let (first, mut rest) = path.split_first()?;
        let mut module = match first.as_str() {
            "crate" => Module::new(),
            "self" => here.clone(),
            "super" => {
                let more = rest.iter().take_while(|word| *word == "super").count();
                rest = &rest[more..];
                here[..here.len().saturating_sub(1 + more)].to_vec()
            }
            name => {
                let child: Module = here.iter().chain([first]).cloned().collect();
                match self.names.get(name) {
                    Some(module) => module.clone(),
                    None if self.modules.contains(&child) => child,
                    None => return None,
                }
            }
        };
        let mut is_module = true;
        for name in rest {
            module.push(name.clone());
            if !self.modules.contains(&module) {
                module.pop();
                is_module = false;
                break;
            }
        }
        // An inner module is a part of its file.
        while !self.modules.contains(&module) && !module.is_empty() {
            module.pop();
        }
        self.found.insert((line, module.clone()));
        Some((module, is_module))
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// For each circle of siblings, its shortest round of arrows.
pub fn circles(arrows: &[Arrow]) -> Vec<Vec<Arrow>> {
    // One arrow for each pair of siblings.
    let mut joins: BTreeMap<&[String], BTreeMap<&[String], &Arrow>> = BTreeMap::new();
    for arrow in arrows {
        if let Some((from, to)) = arrow.siblings() {
            joins.entry(from).or_default().entry(to).or_insert(arrow);
        }
    }
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for start in joins.keys().copied() {
        if seen.contains(start) {
            continue;
        }
        let Some(round) = round(&joins, start) else { continue };
        // Whatever can be reached from here, and leads back, is of the same circle.
        let reached = reach(&joins, start);
        seen.extend(reached.into_iter().filter(|node| reach(&joins, node).contains(start)));
        found.push(round.into_iter().cloned().collect());
    }
    found
}

type Joins<'a> = BTreeMap<&'a [String], BTreeMap<&'a [String], &'a Arrow>>;

fn reach<'a>(joins: &Joins<'a>, start: &[String]) -> BTreeSet<&'a [String]> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(node) = open.pop() {
        for to in joins.get(node).into_iter().flat_map(|next| next.keys().copied()) {
            if reached.insert(to) {
                open.push(to);
            }
        }
    }
    reached
}

/// The shortest way from a module back to itself.
fn round<'a>(joins: &Joins<'a>, start: &'a [String]) -> Option<Vec<&'a Arrow>> {
    let mut open = VecDeque::from([(start, Vec::new())]);
    let mut reached = BTreeSet::new();
    while let Some((node, way)) = open.pop_front() {
        for (to, arrow) in joins.get(node).into_iter().flatten() {
            let way = [&way[..], &[*arrow]].concat();
            if *to == start {
                return Some(way);
            }
            if reached.insert(*to) {
                open.push_back((to, way));
            }
        }
    }
    None
}

//! Merges defaults, file, environment and flags into a [`Config`], remembering where each value came from.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use crate::nearest::nearest;
use crate::{Config, ConfigError, Place, limits};

/// Variables of ours that are no keys, though they look like ones.
const NO_KEYS: [&str; 1] = ["VELO_DPDK_PLUGIN"];
/// The most bytes of a configuration file.
const FILE_BYTES: u64 = 1 << 20;

/// Where each value that is not a default was given, by `section.key`.
#[derive(Default)]
pub(crate) struct Places(HashMap<String, Place>);

impl Places {
    pub(crate) fn of(&self, key: &str) -> Place {
        self.0.get(key).cloned().unwrap_or(Place::Default)
    }
}

impl Config {
    /// The configuration of this process: defaults, then `file`, then `env`, then `overrides` (`section.key` and its
    /// value as text). Values in the environment and in overrides are written as in TOML, without quotation marks
    /// around text; lists are separated by commas.
    ///
    /// # Errors
    /// [`ConfigError`]: it names the key and the place of the first thing that is wrong.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let env: BTreeMap<String, String> = env.into_iter().collect();
        let mut merge = Merge::new();
        if let Some(path) = file {
            merge.file(path, &read(path)?)?;
        }
        merge.environment(&env)?;
        for (key, value) in overrides {
            merge.text(key, value, Place::Flag)?;
        }
        let mut config = merge.finish()?;
        if config.node.data_dir.as_os_str().is_empty() {
            config.node.data_dir = default_data_dir(&env).ok_or(ConfigError::NoDataDirectory)?;
        }
        Ok(config)
    }

    /// The configuration that `text` alone makes; `path` is only named in errors. `node.data_dir` stays empty unless
    /// it is in the text.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_toml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut merge = Merge::new();
        merge.file(path, text)?;
        merge.finish()
    }
}

/// The file that is read where no flag names one: `/etc/velo/velo.toml` for root, else `velo/velo.toml` under
/// `$XDG_CONFIG_HOME` or `~/.config`; none if it does not exist.
pub fn default_file(env: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let path = if rustix::process::geteuid().is_root() {
        PathBuf::from("/etc/velo/velo.toml")
    } else {
        let base = env("XDG_CONFIG_HOME").filter(|s| !s.is_empty()).map(PathBuf::from);
        base.or_else(|| env("HOME").map(|home| Path::new(&home).join(".config")))?.join("velo/velo.toml")
    };
    path.exists().then_some(path)
}

fn default_data_dir(env: &BTreeMap<String, String>) -> Option<PathBuf> {
    let set = |name: &str| env.get(name).filter(|value| !value.is_empty());
    if let Some(base) = set("XDG_DATA_HOME") {
        return Some(Path::new(base).join("velo"));
    }
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/velo"));
    }
    set("HOME").map(|home| Path::new(home).join(".local/share/velo"))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES {
        return Err(failed(std::io::Error::other(format!("{size} bytes are too many for a configuration"))));
    }
    std::fs::read_to_string(path).map_err(failed)
}

struct Merge {
    /// All keys by their dotted names, with the defaults: what is known comes from the types themselves.
    defaults: BTreeMap<String, Value>,
    /// The dotted names of all sections.
    sections: BTreeSet<String>,
    /// What was given.
    given: Table,
    places: Places,
}

impl Merge {
    fn new() -> Self {
        let table = Table::try_from(Config::default()).expect("the defaults can be written as TOML");
        let (mut defaults, mut sections) = (BTreeMap::new(), BTreeSet::new());
        flatten("", table, &mut defaults, &mut sections);
        Self { defaults, sections, given: Table::new(), places: Places::default() }
    }

    fn file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let place = |span: std::ops::Range<usize>| {
            let before = text.as_bytes().get(..span.start).unwrap_or(text.as_bytes());
            Place::File(path.to_owned(), 1 + before.iter().filter(|b| **b == b'\n').count())
        };
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            place: place(error.span().unwrap_or(0..0)),
            message: error.message().to_owned(),
        })?;
        self.section("", table.into_inner(), &place)
    }

    /// Takes what a file says of one section, and of those in it.
    fn section(
        &mut self,
        section: &str,
        body: DeTable<'_>,
        place: &impl Fn(std::ops::Range<usize>) -> Place,
    ) -> Result<(), ConfigError> {
        for (name, value) in body {
            let at = place(name.span());
            let key = dotted(section, name.get_ref());
            match value.get_ref() {
                _ if self.defaults.contains_key(&key) => self.value(&key, plain(value), at)?,
                _ if !self.sections.contains(&key) => return Err(self.unknown(&key, at)),
                DeValue::Table(_) => {
                    if let DeValue::Table(body) = value.into_inner() {
                        self.section(&key, body, place)?;
                    }
                }
                _ => {
                    let message = format!("this is a section: write [{key}] and its keys below");
                    return Err(ConfigError::Value { key, message, place: at });
                }
            }
        }
        Ok(())
    }

    fn environment(&mut self, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        for (name, value) in env {
            let ours = !NO_KEYS.contains(&name.as_str());
            let Some(rest) = name.strip_prefix("VELO_").filter(|_| ours) else { continue };
            let rest = rest.to_ascii_lowercase();
            let place = Place::Environment(name.clone());
            let known = self.defaults.keys().find(|key| key.replace('.', "_") == rest).cloned();
            if let Some(key) = known {
                self.text(&key, value, place)?;
                continue;
            }
            let within = |section: &&String| {
                rest.strip_prefix(&section.replace('.', "_")).is_some_and(|key| key.starts_with('_'))
            };
            if let Some(section) = self.sections.iter().filter(within).max_by_key(|section| section.len()) {
                return Err(self.unknown(&dotted(section, &rest[section.len() + 1..]), place));
            }
            // A key of ours under a section that is none; otherwise another program's, or a variable that only a flag reads.
            if let Some((section, key)) = rest.split_once('_')
                && self.defaults.keys().any(|known| known.ends_with(&format!(".{key}")))
            {
                return Err(self.unknown(section, place));
            }
        }
        Ok(())
    }

    /// The error for a section or key that does not exist. What is nearest may be the same key in another section.
    fn unknown(&self, name: &str, place: Place) -> ConfigError {
        let (section, key) = name.rsplit_once('.').unwrap_or(("", name));
        let all =
            self.defaults.keys().chain(&self.sections).filter(|known| known.ends_with(&format!(".{key}")));
        // Of several the one for the whole node, not for a part of it.
        let elsewhere = all.min_by_key(|known| known.matches('.').count());
        let beside = || {
            let all = self.defaults.keys().chain(&self.sections);
            let keys = all.filter_map(|known| match section {
                "" => (!known.contains('.')).then_some(known.as_str()),
                _ => known.strip_prefix(section)?.strip_prefix('.'),
            });
            dotted(section, nearest(key, keys).unwrap_or_default())
        };
        let near = elsewhere.cloned().unwrap_or_else(beside);
        ConfigError::UnknownKey { key: name.to_owned(), nearest: near, place }
    }

    /// A value given as text: it has the type that the key's default has.
    fn text(&mut self, key: &str, text: &str, place: Place) -> Result<(), ConfigError> {
        let Some(default) = self.defaults.get(key) else { return Err(self.unknown(key, place)) };
        let bad = |message: String| ConfigError::Value { key: key.into(), message, place: place.clone() };
        let value = match default {
            Value::Boolean(_) => match text {
                "true" | "1" | "yes" | "on" => Value::Boolean(true),
                "false" | "0" | "no" | "off" => Value::Boolean(false),
                _ => return Err(bad(format!("`{text}` is neither true nor false"))),
            },
            Value::Integer(_) => {
                Value::Integer(text.parse().map_err(|_| bad(format!("`{text}` is not a whole number")))?)
            }
            Value::Array(_) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
            }
            _ => Value::String(text.to_owned()),
        };
        self.value(key, value, place)
    }

    /// Checks the type of one value by itself, so that an error names exactly it, and takes it.
    fn value(&mut self, key: &str, value: Value, place: Place) -> Result<(), ConfigError> {
        let mut whole = Table::new();
        insert(&mut whole, key, value.clone());
        whole.try_into::<Config>().map_err(|error| ConfigError::Value {
            key: key.to_owned(),
            message: error.message().to_owned(),
            place: place.clone(),
        })?;
        insert(&mut self.given, key, value);
        self.places.0.insert(key.to_owned(), place);
        Ok(())
    }

    fn finish(self) -> Result<Config, ConfigError> {
        let config: Config = self.given.try_into().map_err(|error: toml::de::Error| ConfigError::Syntax {
            place: Place::Default,
            message: error.message().to_owned(),
        })?;
        limits::check(&config, &self.places)?;
        Ok(config)
    }
}

fn dotted(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

fn flatten(section: &str, table: Table, keys: &mut BTreeMap<String, Value>, sections: &mut BTreeSet<String>) {
    for (name, value) in table {
        let name = dotted(section, &name);
        match value {
            Value::Table(body) => {
                flatten(&name, body, keys, sections);
                sections.insert(name);
            }
            value => drop(keys.insert(name, value)),
        }
    }
}

/// Puts a value where its dotted name says.
fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((section, rest)) => {
            let body = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            insert(body.as_table_mut().expect("every section is a table"), rest, value);
        }
    }
}

/// The value without its spans. Numbers that TOML can write and i64 cannot hold become text, which every numeric type refuses.
fn plain(value: Spanned<DeValue<'_>>) -> Value {
    match value.into_inner() {
        DeValue::String(text) => Value::String(Cow::into_owned(text)),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::String(number.to_string()),
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => Value::String(number.to_string()),
        },
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(value) => Value::Datetime(value),
        DeValue::Array(items) => Value::Array(items.into_iter().map(plain).collect()),
        DeValue::Table(table) => Value::Table(
            table.into_iter().map(|(k, v)| (Cow::into_owned(k.into_inner()), plain(v))).collect(),
        ),
    }
}

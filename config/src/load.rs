//! Merges defaults, file, environment and flags into a [`Config`], remembering where each value came from.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use crate::nearest::nearest;
use crate::{Config, ConfigError, Place, limits};

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
            let (section, name) = merge.known(key, &Place::Flag)?;
            merge.text(&section, &name, value, Place::Flag)?;
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
    /// All keys, with the defaults: what is known comes from the types themselves.
    defaults: Table,
    /// What was given.
    given: Table,
    places: Places,
}

impl Merge {
    fn new() -> Self {
        let defaults = Table::try_from(Config::default()).expect("the defaults can be written as TOML");
        Self { defaults, given: Table::new(), places: Places::default() }
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
        for (section, body) in table.into_inner() {
            let at = place(section.span());
            let section = self.section(section.get_ref(), &at)?;
            let DeValue::Table(body) = body.into_inner() else {
                let message = format!("this is a section: write [{section}] and its keys below");
                return Err(ConfigError::Value { key: section, message, place: at });
            };
            for (key, value) in body {
                let at = place(key.span());
                let name = self.key(&section, key.get_ref(), &at)?;
                self.value(&section, &name, plain(value), at)?;
            }
        }
        Ok(())
    }

    fn environment(&mut self, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        for (name, value) in env {
            let Some(rest) = name.strip_prefix("VELO_") else { continue };
            let Some((section, key)) = rest.split_once('_') else { continue };
            let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
            let place = Place::Environment(name.clone());
            if !self.defaults.contains_key(&section) {
                let known = |body: &Value| body.as_table().is_some_and(|body| body.contains_key(&key));
                if self.defaults.values().any(known) {
                    self.section(&section, &place)?; // a key of ours under a section that is none
                }
                continue; // another program's, or a variable that only a flag reads
            }
            let key = self.key(&section, &key, &place)?;
            self.text(&section, &key, value, place)?;
        }
        Ok(())
    }

    /// Splits `section.key` and checks that both are known.
    fn known(&self, dotted: &str, place: &Place) -> Result<(String, String), ConfigError> {
        let Some((section, key)) = dotted.split_once('.') else {
            let all = self.all_keys();
            let near = nearest(dotted, all.iter().map(String::as_str)).unwrap_or_default().to_owned();
            return Err(ConfigError::UnknownKey { key: dotted.into(), nearest: near, place: place.clone() });
        };
        let section = self.section(section, place)?;
        let key = self.key(&section, key, place)?;
        Ok((section, key))
    }

    fn all_keys(&self) -> Vec<String> {
        let keys = |(section, body): (&String, &Value)| {
            let names: Vec<String> = body.as_table().into_iter().flat_map(|t| t.keys().cloned()).collect();
            names.into_iter().map(|key| format!("{section}.{key}")).collect::<Vec<_>>()
        };
        self.defaults.iter().flat_map(keys).collect()
    }

    fn section(&self, name: &str, place: &Place) -> Result<String, ConfigError> {
        if self.defaults.contains_key(name) {
            return Ok(name.to_owned());
        }
        // A key without its section is nearer to `net.listen` than to any section.
        let all = self.all_keys();
        let bare = all.iter().find(|dotted| dotted.split_once('.').is_some_and(|(_, key)| key == name));
        let near = match bare {
            Some(dotted) => dotted.clone(),
            None => nearest(name, self.defaults.keys().map(String::as_str)).unwrap_or_default().to_owned(),
        };
        Err(ConfigError::UnknownKey { key: name.into(), nearest: near, place: place.clone() })
    }

    fn key(&self, section: &str, name: &str, place: &Place) -> Result<String, ConfigError> {
        let known = self.defaults[section].as_table().expect("every section is a table");
        if known.contains_key(name) {
            return Ok(name.to_owned());
        }
        let dotted = format!("{section}.{name}");
        let all = self.all_keys();
        // The key may be right and the section wrong.
        let elsewhere = all.iter().find(|k| k.ends_with(&format!(".{name}")));
        let near = match elsewhere {
            Some(dotted) => dotted.clone(),
            None => {
                format!("{section}.{}", nearest(name, known.keys().map(String::as_str)).unwrap_or_default())
            }
        };
        Err(ConfigError::UnknownKey { key: dotted, nearest: near, place: place.clone() })
    }

    /// A value given as text: it has the type that the key's default has.
    fn text(&mut self, section: &str, key: &str, text: &str, place: Place) -> Result<(), ConfigError> {
        let bad = |message: String| ConfigError::Value {
            key: format!("{section}.{key}"),
            message,
            place: place.clone(),
        };
        let value = match &self.defaults[section][key] {
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
        self.value(section, key, value, place)
    }

    /// Checks the type of one value by itself, so that an error names exactly it, and takes it.
    fn value(&mut self, section: &str, key: &str, value: Value, place: Place) -> Result<(), ConfigError> {
        let one = Table::from_iter([(key.to_owned(), value.clone())]);
        let whole = Table::from_iter([(section.to_owned(), Value::Table(one))]);
        whole.try_into::<Config>().map_err(|error| ConfigError::Value {
            key: format!("{section}.{key}"),
            message: error.message().to_owned(),
            place: place.clone(),
        })?;
        let body = self.given.entry(section).or_insert_with(|| Value::Table(Table::new()));
        body.as_table_mut().expect("every section is a table").insert(key.to_owned(), value);
        self.places.0.insert(format!("{section}.{key}"), place);
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

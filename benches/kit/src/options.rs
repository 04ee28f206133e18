//! `--name value` pairs of the command line.

use std::collections::HashMap;
use std::str::FromStr;

pub struct Options(HashMap<String, String>);

impl Options {
    pub fn new(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut pairs = HashMap::new();
        while let Some(name) = arguments.next() {
            let Some(name) = name.strip_prefix("--") else { fail(&format!("{name} is not an option")) };
            let value = arguments.next().unwrap_or_else(|| fail(&format!("--{name} wants a value")));
            pairs.insert(name.to_owned(), value);
        }
        Self(pairs)
    }

    pub fn text(&self, name: &str, default: &str) -> String {
        self.0.get(name).map_or(default, String::as_str).to_owned()
    }

    pub fn number<T: FromStr>(&self, name: &str, default: T) -> T {
        let Some(text) = self.0.get(name) else { return default };
        text.parse().unwrap_or_else(|_| fail(&format!("--{name} {text} is not a number")))
    }

    /// Numbers with commas between them.
    pub fn list(&self, name: &str) -> Vec<u32> {
        let text = self.text(name, "");
        let words = text.split(',').filter(|word| !word.is_empty());
        words.map(|word| word.parse().unwrap_or_else(|_| fail(&format!("--{name} {text} are not numbers")))).collect()
    }
}

pub fn fail(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(2)
}

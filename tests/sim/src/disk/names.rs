//! Which file has which name: a hub has hundreds of thousands, and is asked for a few of them with each request.

use std::collections::HashMap;

/// Numbers of files by folder and by name in it.
#[derive(Debug, Default)]
pub(super) struct Names {
    folders: HashMap<String, HashMap<String, u64>>,
}

impl Names {
    pub(super) fn get(&self, name: &str) -> Option<u64> {
        let (folder, name) = split(name);
        self.folders.get(folder)?.get(name).copied()
    }

    /// The file that had the name before, if there was one.
    pub(super) fn insert(&mut self, name: &str, file: u64) -> Option<u64> {
        let (folder, name) = split(name);
        if !self.folders.contains_key(folder) {
            self.folders.insert(folder.to_owned(), HashMap::new());
        }
        let files = self.folders.get_mut(folder)?;
        files.insert(name.to_owned(), file)
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<u64> {
        let (folder, name) = split(name);
        self.folders.get_mut(folder)?.remove(name)
    }

    pub(super) fn clear(&mut self) {
        self.folders.clear();
    }

    /// The files that lie in a folder itself, by name: in an order that does not depend on chance.
    pub(super) fn of_folder(&self, folder: &str) -> Vec<(&str, u64)> {
        let files = self.folders.get(folder).into_iter().flatten();
        let mut files: Vec<_> = files.map(|(name, file)| (name.as_str(), *file)).collect();
        files.sort_unstable();
        files
    }

    /// Everything, in no particular order.
    pub(super) fn all(&self) -> impl Iterator<Item = (String, u64)> {
        self.folders.iter().flat_map(|(folder, files)| {
            let files = files.iter();
            files.map(move |(name, file)| (format!("{folder}/{name}"), *file))
        })
    }
}

/// Folder and name in it.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

//! Tables whose rows are also found by something else than their key, so that no decision walks all
//! of a table to find the few rows that it is about.
//!
//! What a row is found by is a function of the row ([`Listed`]). The index is kept with each change
//! and made anew when a table is read: it is no part of what is written, nor of what makes tables
//! equal. Whatever only narrows a search may list more rows than match; it must never list fewer.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Table;

/// A value that is found by terms.
pub trait Listed: Clone + PartialEq {
    /// What it is found by. A change clones the terms that lie beside its own.
    type Term: Ord + Clone + fmt::Debug;

    /// Everything that it is found by, in any order; a term may stand there twice.
    fn terms(&self) -> Vec<Self::Term>;

    /// Whether another one has the same terms; may say no where they are the same. Asked with each
    /// change, so it should cost little.
    fn has_terms_of(&self, other: &Self) -> bool;
}

/// A table with an index of its rows. Reading is that of [`Table`].
#[derive(Clone)]
pub struct Indexed<K: Ord, V: Listed> {
    rows: Table<K, V>,
    index: OrdMap<V::Term, OrdSet<K>>,
}

impl<K: Ord + Clone, V: Listed> Indexed<K, V> {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keys of the rows that have a term, in order.
    pub fn keys_of<'a>(
        &'a self,
        term: &V::Term,
    ) -> impl DoubleEndedIterator<Item = &'a K> + use<'a, K, V> {
        self.index.get(term).into_iter().flat_map(OrdSet::iter)
    }

    /// Rows that have a term, in order of their keys.
    pub fn rows_of<'a>(
        &'a self,
        term: &V::Term,
    ) -> impl DoubleEndedIterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        self.keys_of(term)
            .filter_map(|key| self.rows.get(key).map(|value| (key, value)))
    }

    /// How many rows have a term.
    pub fn count_of(&self, term: &V::Term) -> usize {
        self.index.get(term).map_or(0, OrdSet::len)
    }

    /// Terms that some row has, from this one on.
    pub fn terms_from<'a>(
        &'a self,
        first: &V::Term,
    ) -> impl Iterator<Item = &'a V::Term> + use<'a, K, V> {
        self.index
            .range::<_, V::Term>(first..)
            .map(|(term, _)| term)
    }

    /// Puts a row in place of the one of the same key, which it answers.
    pub fn insert(&mut self, key: K, value: V) -> Option<Arc<V>> {
        match self.rows.get(&key) {
            Some(before) if value.has_terms_of(before) => {}
            Some(before) => {
                let before = before.terms();
                self.unlist(&key, before);
                self.list(&key, value.terms());
            }
            None => self.list(&key, value.terms()),
        }
        self.rows.insert(key, value)
    }

    /// Takes a row out.
    pub fn remove(&mut self, key: &K) -> Option<Arc<V>> {
        let removed = self.rows.remove(key)?;
        self.unlist(key, removed.terms());
        Some(removed)
    }

    /// Changes a value in its place; none: there is no such row.
    pub fn change<R>(&mut self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        let value = self.rows.get_mut(key)?;
        let before = value.terms();
        let result = change(value);
        let after = value.terms();
        if before != after {
            self.unlist(key, before);
            self.list(key, after);
        }
        Some(result)
    }

    /// The value of a key, to change of it what no term is made of.
    pub fn beside_terms<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.rows.get_mut(key)
    }

    /// Whether the index is what it would be if it were made anew.
    pub fn is_sound(&self) -> bool {
        Self::from(self.rows.clone()).index == self.index
    }

    fn list(&mut self, key: &K, terms: Vec<V::Term>) {
        for term in terms {
            match self.index.get_mut(&term) {
                Some(keys) => {
                    keys.insert(key.clone());
                }
                None => {
                    self.index.insert(term, OrdSet::unit(key.clone()));
                }
            }
        }
    }

    fn unlist(&mut self, key: &K, terms: Vec<V::Term>) {
        for term in terms {
            let Some(keys) = self.index.get_mut(&term) else {
                continue;
            };
            keys.remove(key);
            if keys.is_empty() {
                self.index.remove(&term);
            }
        }
    }
}

impl<K: Ord, V: Listed> Deref for Indexed<K, V> {
    type Target = Table<K, V>;

    fn deref(&self) -> &Table<K, V> {
        &self.rows
    }
}

impl<K: Ord, V: Listed> Default for Indexed<K, V> {
    fn default() -> Self {
        Self {
            rows: Table::default(),
            index: OrdMap::new(),
        }
    }
}

impl<K: Ord + Clone, V: Listed> From<Table<K, V>> for Indexed<K, V> {
    fn from(rows: Table<K, V>) -> Self {
        let mut indexed = Self::default();
        for (key, value) in &rows {
            indexed.list(key, value.terms());
        }
        indexed.rows = rows;
        indexed
    }
}

impl<K: Ord, V: Listed> PartialEq for Indexed<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl<K: Ord, V: Listed + Eq> Eq for Indexed<K, V> {}

impl<K: Ord + fmt::Debug, V: Listed + fmt::Debug> fmt::Debug for Indexed<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.fmt(f)
    }
}

impl<K: Ord + Serialize, V: Listed + Serialize> Serialize for Indexed<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.rows.serialize(serializer)
    }
}

impl<'de, K, V> Deserialize<'de> for Indexed<K, V>
where
    K: Ord + Clone + Deserialize<'de>,
    V: Listed + Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Table::deserialize(deserializer).map(Self::from)
    }
}

impl<'a, K: Ord, V: Listed> IntoIterator for &'a Indexed<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = super::table::Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.rows.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Word(String);

    impl Listed for Word {
        type Term = char;

        fn terms(&self) -> Vec<char> {
            self.0.chars().collect()
        }

        fn has_terms_of(&self, other: &Self) -> bool {
            self == other
        }
    }

    fn words(words: &[&str]) -> Indexed<usize, Word> {
        let mut table = Indexed::new();
        for (key, word) in words.iter().enumerate() {
            table.insert(key, Word((*word).to_owned()));
        }
        table
    }

    fn with(table: &Indexed<usize, Word>, term: char) -> Vec<usize> {
        assert_eq!(table.count_of(&term), table.keys_of(&term).count());
        table.keys_of(&term).copied().collect()
    }

    #[test]
    fn rows_are_found_by_their_terms_whatever_happened_to_them() {
        let mut table = words(&["ab", "bc", "bb", ""]);
        assert_eq!(with(&table, 'b'), [0, 1, 2]);
        table.insert(1, Word("c".to_owned()));
        table.remove(&2);
        table.change(&3, |word| word.0.push('c'));
        assert_eq!(with(&table, 'a'), [0]);
        assert_eq!(with(&table, 'b'), [0]);
        assert_eq!(with(&table, 'c'), [1, 3]);
        assert_eq!(table.terms_from(&'b').collect::<String>(), "bc");
        assert_eq!(table.remove(&7), None);
        assert_eq!(table.change(&7, |_| ()), None);
        assert!(table.is_sound());
        table.beside_terms(&0).unwrap().0.push('z');
        assert!(!table.is_sound());
    }

    #[test]
    fn what_is_written_is_the_rows_alone() {
        let table = words(&["ab", "c"]);
        let written = serde_json::to_string(&table).unwrap();
        assert_eq!(written, r#"{"0":"ab","1":"c"}"#);
        let read: Indexed<usize, Word> = serde_json::from_str(&written).unwrap();
        assert_eq!(read, table);
        assert!(read.is_sound());
        assert_eq!(with(&read, 'c'), [1]);
    }
}

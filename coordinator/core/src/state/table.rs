//! The tables that the state is made of: ordered, persistent, with values that are shared one by one.
//!
//! A clone of a table shares everything. A change of one row copies the nodes on the way to it: of
//! the rows beside it only keys and pointers, whatever they hold. Every command costs that on every
//! node, because readers hold the state as it was before; so keys should be cheap to clone. On the
//! wire a table is a map, in order of its keys.

use std::borrow::Borrow;
use std::fmt;
use std::ops::{Index, RangeBounds};
use std::sync::Arc;

use imbl::ordmap;
use imbl::shared_ptr::DefaultSharedPtr;
use serde::{Deserialize, Serialize};

/// An ordered table of ids, numbers and times, which lie beside their keys; a clone shares
/// everything.
pub type Lean<K, V> = imbl::OrdMap<K, V>;

/// An ordered table; a clone shares everything, a change shares every other value.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    transparent,
    bound(
        serialize = "K: Ord + Serialize, V: Serialize",
        deserialize = "K: Ord + Clone + Deserialize<'de>, V: Deserialize<'de>"
    )
)]
pub struct Table<K: Ord, V> {
    rows: imbl::OrdMap<K, Arc<V>>,
}

type Row<'a, K, V> = (&'a K, &'a V);

/// Rows in order of their keys.
pub type Iter<'a, K, V> = std::iter::Map<
    ordmap::Iter<'a, K, Arc<V>, DefaultSharedPtr>,
    fn((&'a K, &'a Arc<V>)) -> Row<'a, K, V>,
>;

/// Rows within bounds, in order of their keys.
pub type Range<'a, K, V> = std::iter::Map<
    ordmap::RangedIter<'a, K, Arc<V>, DefaultSharedPtr>,
    fn((&'a K, &'a Arc<V>)) -> Row<'a, K, V>,
>;

/// Values in order of their keys.
pub type Values<'a, K, V> =
    std::iter::Map<ordmap::Values<'a, K, Arc<V>, DefaultSharedPtr>, fn(&'a Arc<V>) -> &'a V>;

fn opened<'a, K, V>((key, value): (&'a K, &'a Arc<V>)) -> Row<'a, K, V> {
    (key, &**value)
}

impl<K: Ord, V> Table<K, V> {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether both are the same rows in memory: then they are equal. Different rows may be equal
    /// too.
    #[must_use]
    pub fn ptr_eq(&self, other: &Self) -> bool {
        self.rows.ptr_eq(&other.rows)
    }

    /// The value of a key.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.rows.get(key).map(|value| &**value)
    }

    /// The row of a key.
    pub fn get_key_value<Q>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.rows.get_key_value(key).map(opened)
    }

    /// Whether there is a row of this key.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.rows.contains_key(key)
    }

    /// The first row.
    #[must_use]
    pub fn get_min(&self) -> Option<(&K, &V)> {
        self.rows.get_min().map(|(key, value)| (key, &**value))
    }

    /// The last row.
    #[must_use]
    pub fn get_max(&self) -> Option<(&K, &V)> {
        self.rows.get_max().map(|(key, value)| (key, &**value))
    }

    /// Every row, in order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        self.rows.iter().map(opened as fn(_) -> _)
    }

    /// The rows within bounds, in order.
    pub fn range<R, Q>(&self, bounds: R) -> Range<'_, K, V>
    where
        R: RangeBounds<Q>,
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.rows.range(bounds).map(opened as fn(_) -> _)
    }

    /// Every row, in order, with its value as it is shared.
    pub fn shared(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.rows.iter()
    }

    /// Every key, in order.
    #[must_use]
    pub fn keys(&self) -> ordmap::Keys<'_, K, Arc<V>, DefaultSharedPtr> {
        self.rows.keys()
    }

    /// Every value, in order of the keys.
    pub fn values(&self) -> Values<'_, K, V> {
        self.rows.values().map(Arc::as_ref as fn(_) -> _)
    }

    /// Keys whose rows differ between this table and a later one, in order. Costs what differs, not
    /// what there is, if the later one came about by changes of this one.
    pub fn changed<'a>(&'a self, later: &'a Self) -> impl Iterator<Item = &'a K>
    where
        V: PartialEq,
    {
        self.rows
            .diff(&later.rows)
            .map(|difference| match difference {
                ordmap::DiffItem::Add(key, _) | ordmap::DiffItem::Remove(key, _) => key,
                ordmap::DiffItem::Update { new: (key, _), .. } => key,
            })
    }
}

impl<K: Ord + Clone, V> Table<K, V> {
    /// One row.
    #[must_use]
    pub fn unit(key: K, value: V) -> Self {
        Self {
            rows: imbl::OrdMap::unit(key, Arc::new(value)),
        }
    }

    /// Puts a row in place of the one of the same key, which it answers.
    pub fn insert(&mut self, key: K, value: V) -> Option<Arc<V>> {
        self.rows.insert(key, Arc::new(value))
    }

    /// The same with a value that may be shared with others already.
    pub fn insert_shared(&mut self, key: K, value: Arc<V>) -> Option<Arc<V>> {
        self.rows.insert(key, value)
    }

    /// Takes a row out.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.rows.remove(key)
    }

    /// Takes out every row that is not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) {
        let gone = self.iter().filter(|(key, value)| !keep(key, value));
        for key in gone.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.rows.remove(&key);
        }
    }

    /// The value of a key, to be changed in its place; it is copied if somebody else holds it.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
        V: Clone,
    {
        self.rows.get_mut(key).map(Arc::make_mut)
    }
}

impl<K: Ord, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self {
            rows: self.rows.clone(),
        }
    }
}

impl<K: Ord, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            rows: imbl::OrdMap::new(),
        }
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rows.fmt(f)
    }
}

impl<K: Ord + Clone, V> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(rows: I) -> Self {
        let mut table = Self::new();
        table.extend(rows);
        table
    }
}

impl<K: Ord + Clone, V> Extend<(K, V)> for Table<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, rows: I) {
        for (key, value) in rows {
            self.insert(key, value);
        }
    }
}

impl<'a, K: Ord, V> IntoIterator for &'a Table<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Ord + Clone, V: Clone> IntoIterator for Table<K, V> {
    type Item = (K, V);
    type IntoIter = std::iter::Map<
        ordmap::ConsumingIter<K, Arc<V>, DefaultSharedPtr>,
        fn((K, Arc<V>)) -> (K, V),
    >;

    fn into_iter(self) -> Self::IntoIter {
        let own = |(key, value)| (key, Arc::unwrap_or_clone(value));
        self.rows.into_iter().map(own as fn(_) -> _)
    }
}

impl<Q, K, V> Index<&Q> for Table<K, V>
where
    K: Ord + Borrow<Q>,
    Q: Ord + ?Sized,
{
    type Output = V;

    /// # Panics
    /// There is no such row: only for tests, where that is a failure.
    fn index(&self, key: &Q) -> &V {
        &self.rows[key]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value that does not like to be copied.
    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Heavy(String);

    fn table(count: u32) -> Table<u32, Heavy> {
        (0..count).map(|n| (n, Heavy(n.to_string()))).collect()
    }

    #[test]
    fn a_change_shares_every_other_value() {
        let before = table(1_000);
        let mut after = before.clone();
        after.insert(500, Heavy("other".to_owned()));
        let shared = before
            .rows
            .iter()
            .zip(after.rows.iter())
            .filter(|((_, one), (_, other))| Arc::ptr_eq(one, other));
        assert_eq!(shared.count(), 999);
        assert_eq!(before[&500], Heavy("500".to_owned()));
        assert_eq!(before.changed(&after).collect::<Vec<_>>(), [&500]);
    }

    #[test]
    fn rows_that_came_went_and_changed_are_told() {
        let before = table(100);
        let mut after = before.clone();
        after.remove(&3);
        after.insert(200, Heavy(String::new()));
        after.insert(50, Heavy(String::new()));
        // Written anew with what stood there.
        after.insert(60, Heavy("60".to_owned()));
        assert_eq!(before.changed(&after).collect::<Vec<_>>(), [&3, &50, &200]);
        assert_eq!(before.changed(&before).next(), None);
        after.retain(|key, _| *key >= 50);
        assert_eq!(after.len(), 51);
    }

    #[test]
    fn on_the_wire_it_is_a_map() {
        let written = serde_json::to_string(&table(2)).unwrap();
        assert_eq!(written, r#"{"0":"0","1":"1"}"#);
        let read: Table<u32, Heavy> = serde_json::from_str(&written).unwrap();
        assert_eq!(read, table(2));
    }
}

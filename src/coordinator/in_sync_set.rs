//! The recorded in-sync set as a value.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::types::{InvalidValue, NodeId, shorten};

/// The most ids of an [`InSyncSet`]; far more than one leader has followers.
pub const IN_SYNC_IDS_MAX: usize = 1024;

/// The ids of the nodes that may become leader, the leader's own included. Never empty, and at most [`IN_SYNC_IDS_MAX`].
///
/// As text it is what LavinMQ keeps in etcd: ids in base 36, joined by `,`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InSyncSet(BTreeSet<NodeId>);

impl InSyncSet {
    /// Checks that there is an id, and that there are not too many.
    pub fn new(ids: impl IntoIterator<Item = NodeId>) -> Result<Self, InvalidValue> {
        // One more than allowed is enough to see that there are too many; repeated ids do not count.
        let mut set = BTreeSet::new();
        for id in ids {
            set.insert(id);
            if set.len() > IN_SYNC_IDS_MAX {
                break;
            }
        }
        Self::check(set)
    }

    fn check(set: BTreeSet<NodeId>) -> Result<Self, InvalidValue> {
        if set.is_empty() || set.len() > IN_SYNC_IDS_MAX {
            let shown = format!("({} ids)", set.len());
            return Err(InvalidValue::new("in-sync set", shown, "it has 1 to 1024 ids"));
        }
        Ok(Self(set))
    }

    /// The set of one.
    #[must_use]
    pub fn of(id: NodeId) -> Self {
        Self(BTreeSet::from([id]))
    }

    /// Whether this node is in it.
    #[must_use]
    pub fn contains(&self, id: NodeId) -> bool {
        self.0.contains(&id)
    }

    /// How many there are; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The ids, in ascending order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = NodeId> + '_ {
        self.0.iter().copied()
    }

    /// The set without this id; `None` if nothing would be left.
    #[must_use]
    pub fn without(&self, id: NodeId) -> Option<Self> {
        let mut set = self.0.clone();
        set.remove(&id);
        (!set.is_empty()).then_some(Self(set))
    }
}

impl fmt::Display for InSyncSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, id) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{id}")?;
        }
        Ok(())
    }
}

impl FromStr for InSyncSet {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let mut ids = text.split(',').take(IN_SYNC_IDS_MAX + 1).map(str::parse);
        let set = ids.by_ref().collect::<Result<BTreeSet<NodeId>, _>>().map_err(|_| {
            InvalidValue::new("in-sync set", shorten(text), "it is ids in base 36, joined by `,`; at least one")
        })?;
        Self::check(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: i32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    #[test]
    fn its_text_is_ids_in_base_36_joined_by_commas() {
        let set = InSyncSet::new([id(i32::MAX), id(1), id(36), id(1)]).unwrap();
        assert_eq!((set.to_string().as_str(), set.len()), ("1,10,zik0zj", 3));
        assert_eq!("zik0zj,1,10".parse::<InSyncSet>().unwrap(), set);
        assert!(set.contains(id(36)) && !set.contains(id(37)));
    }

    #[test]
    fn it_is_never_empty_nor_beyond_its_bound() {
        assert!(InSyncSet::new([]).is_err());
        for bad in ["", ",", "1,", ",1", "1,,2", "1 ,2", "0", "-1", "zik0zk", "1;2"] {
            assert!(bad.parse::<InSyncSet>().is_err(), "{bad:?} was taken");
        }
        let ids = |count: i32| (1..=count).map(id);
        assert_eq!(InSyncSet::new(ids(1024)).unwrap().len(), IN_SYNC_IDS_MAX);
        assert!(InSyncSet::new(ids(1025)).is_err());
        assert!(InSyncSet::new((1..).map(id)).is_err());
        let text = |count: i32| ids(count).map(|id| id.to_string()).collect::<Vec<_>>().join(",");
        assert!(text(1024).parse::<InSyncSet>().is_ok() && text(1025).parse::<InSyncSet>().is_err());
        let (one, two) = (InSyncSet::of(id(1)), InSyncSet::new([id(1), id(2)]).unwrap());
        assert_eq!((two.without(id(2)), one.without(id(2)), one.without(id(1))), (Some(one.clone()), Some(one), None));
    }
}

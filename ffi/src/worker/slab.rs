//! A table of entries by index, whose slots are reused.

use super::poll::Key;

/// Slots with a generation each: a key of an earlier tenant finds nothing.
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    tenant: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Takes a tenant in.
    pub fn insert(&mut self, tenant: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, tenant: None });
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.tenant = Some(tenant);
        Key { index, generation: slot.generation }
    }

    /// The tenant of a key, if it still lives there.
    #[inline]
    pub fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        slot.tenant.as_ref()
    }

    /// The tenant of a key, if it still lives there.
    #[inline]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        slot.tenant.as_mut()
    }

    /// Lets a tenant go.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let tenant = slot.tenant.take()?;
        slot.generation = (slot.generation + 1) & Key::GENERATIONS;
        self.free.push(key.index);
        Some(tenant)
    }

    /// The key of the current entry of a slot.
    pub fn key_at(&self, index: u32) -> Option<Key> {
        let slot = self.slots.get(index as usize)?;
        slot.tenant.as_ref()?;
        Some(Key { index, generation: slot.generation })
    }

    /// The keys of all tenants.
    pub fn keys(&self) -> Vec<Key> {
        (0..self.slots.len() as u32).filter_map(|index| self.key_at(index)).collect()
    }

    /// How many tenants there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_an_earlier_tenant_finds_nothing() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(second.index, first.index);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second).copied(), Some("second"));
        assert_eq!(slab.len(), 1);
    }
}

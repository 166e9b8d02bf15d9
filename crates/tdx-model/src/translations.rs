//! Translations that a vCPU may still use: a small direct-mapped cache, dropped only when the tracking protocol says so.

/// Lines of the cache.
const LINES: usize = 256;
/// No page has this guest address.
const EMPTY: u64 = u64::MAX;
/// Permissions are kept in the low bits of the host address.
const PERMISSIONS: u64 = 7;

/// Guest page to host page, as read when the guest last touched it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Translations(Option<Box<[(u64, u64); LINES]>>);

const fn line(page: u64) -> usize {
    (page >> 12) as usize % LINES
}

impl Translations {
    /// The cached host page of the guest page, and its permissions.
    pub(crate) fn get(&self, page: u64) -> Option<(u64, u64)> {
        let (tag, hpa) = self.0.as_ref()?[line(page)];
        (tag == page).then_some((hpa & !PERMISSIONS, hpa & PERMISSIONS))
    }

    pub(crate) fn insert(&mut self, page: u64, hpa: u64, permissions: u64) {
        let lines = self.0.get_or_insert_with(|| Box::new([(EMPTY, 0); LINES]));
        lines[line(page)] = (page, hpa | permissions & PERMISSIONS);
    }

    /// Every cached pair.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let lines = self.0.as_ref().map_or(&[][..], |lines| &lines[..]);
        lines.iter().filter(|&&(tag, _)| tag != EMPTY).map(|&(tag, hpa)| (tag, hpa & !PERMISSIONS))
    }

    pub(crate) fn flush(&mut self) {
        if let Some(lines) = &mut self.0 {
            lines.fill((EMPTY, 0));
        }
    }
}

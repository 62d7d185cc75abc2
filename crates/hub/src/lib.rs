//! Where models come from: names, catalog, downloads, caches, verification.

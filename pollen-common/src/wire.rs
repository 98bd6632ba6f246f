//! CBOR of signed and sent things, with bounds. (Skeleton.)

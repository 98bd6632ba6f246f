//! Author maps. (Skeleton.)

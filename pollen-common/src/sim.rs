//! The simulator. (Skeleton.)

"""Frame-pair streams, augmentation, shard packing, benchmark readers and generated clips."""

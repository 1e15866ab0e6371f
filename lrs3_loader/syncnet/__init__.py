"""Do these lips go with this sound? A small network that learns it from a run's shards, and measures with it.

model        the network
speakers     whom it does not see in training
evaluate     scores over offsets: how often the right one is on top
scalars      figures of a training, on disk
checkpoint   all that a training needs to go on
settings     what decides a training
train        the training
measure      each clip's audio-video offset, by a trained network
"""

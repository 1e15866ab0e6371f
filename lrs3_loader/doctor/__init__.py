"""Checks before a run that it can work; each problem is reported with its remedy.

checks      versions, the machine, whether torch loads; ``lrs3-loader extract`` runs these first
disk_space  estimated size of the shards, compared with the free disk space
trial       a real decode in a decode process, the GPU, the model files
"""

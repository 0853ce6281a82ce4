"""How good the models are: ours against the published way, and quality against the time of pretraining.

`arms` says what is compared, `images` which pictures, `backbones` on what weights; `runs` trains every arm with every
seed as a normal RUN, `scores` compares what the finished runs said of the same images, `probed` puts frozen features
beside, `tables` and `figures` show it, `study` is the whole on one page. `pretraining_time` does the same for backbones
that were pretrained for longer and longer, whose features `frozen` asks.
"""

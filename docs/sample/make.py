"""How the sample records were made, with Sionna and TensorFlow: python docs/sample/make.py

One PRB, one antenna and QPSK keep a slot below a kilobyte; every sixth slot of a frame is taken.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

from distinf.studies.receiver.link import generate
from distinf.studies.receiver.scenario import CHANNEL_MODELS, ScenarioConfig

SCENARIO = ScenarioConfig(
    prbs=1, rx_antennas=1, bits_per_symbol=2, snr_db=(0, 12), dmrs_types=(1,),
    dmrs_additional_positions=(0,), train_models=("TDL-B", "TDL-C"), evaluation_models=("TDL-A",),
)  # fmt: skip
FRAMES = {"train": 12, "evaluation": 4}


def lists(slots: dict[str, np.ndarray], row: int) -> dict[str, tf.train.Feature]:
    """A slot's features, as import.yaml maps them."""
    bits = np.unpackbits(slots["bits"][row])[: 2 * 14 * 12]
    blobs = {"y": slots["grid"][row].tobytes(), "bits": bits.tobytes()}
    blobs["channel_model"] = CHANNEL_MODELS[slots["model"][row]].encode()
    numbers = {"snr_db": slots["snr_db"][row], "ber_known_channel": slots["genie_ber"][row]}
    numbers["delay_spread"] = slots["delay_spread_ns"][row] * 1e-9
    made, feature = tf.train, tf.train.Feature
    return {
        **{k: feature(bytes_list=made.BytesList(value=[v])) for k, v in blobs.items()},
        **{k: feature(float_list=made.FloatList(value=[v])) for k, v in numbers.items()},
    }


for split, frames in FRAMES.items():
    slots = generate(SCENARIO, 0, split, 0, frames * SCENARIO.frame_slots)
    path = Path(__file__).with_name(f"{split}.tfrecord")
    with tf.io.TFRecordWriter(str(path), "GZIP") as file:
        for row in range(0, len(slots["grid"]), 6):
            features = tf.train.Features(feature=lists(slots, row))
            file.write(tf.train.Example(features=features).SerializeToString())

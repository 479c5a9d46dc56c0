"""The host's index of a folder, written by one thread at a time."""

from __future__ import annotations

from monailabel.datastore.local import LocalDatastore

from lib.datastore import one_at_a_time


class LockedIndex(LocalDatastore):  # type: ignore[misc]  # monailabel ships no types
    """Comes between the host's DICOMweb datastore and its base, whose methods lose entries to each other.

    `index_lock`, a re-entrant lock, must be set before use.
    """

    add_image = one_at_a_time(LocalDatastore.add_image)
    save_label = one_at_a_time(LocalDatastore.save_label)
    remove_image = one_at_a_time(LocalDatastore.remove_image)
    remove_label = one_at_a_time(LocalDatastore.remove_label)
    update_image_info = one_at_a_time(LocalDatastore.update_image_info)
    update_label_info = one_at_a_time(LocalDatastore.update_label_info)
    _reconcile_datastore = one_at_a_time(LocalDatastore._reconcile_datastore)
    _init_from_datastore_file = one_at_a_time(LocalDatastore._init_from_datastore_file)
    _update_datastore_file = one_at_a_time(LocalDatastore._update_datastore_file)
    json = one_at_a_time(LocalDatastore.json)

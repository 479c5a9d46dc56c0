"""MONAI Label adapters: thin code between the label server and `app_cdm`."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="SeenKey",
            fields=[
                ("key", models.CharField(max_length=300, primary_key=True, serialize=False)),
                ("received_at", models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.CreateModel(
            name="TrainingJob",
            fields=[
                ("job_id", models.CharField(max_length=200, primary_key=True, serialize=False)),
                ("style_id", models.BigIntegerField(db_index=True)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("queued", "Queued"),
                            ("running", "Running"),
                            ("completed", "Completed"),
                            ("failed", "Failed"),
                            ("canceled", "Canceled"),
                        ],
                        default="queued",
                        max_length=10,
                    ),
                ),
                ("cancel_requested", models.BooleanField(default=False)),
                ("sequence", models.BigIntegerField(default=0)),
                ("percent", models.PositiveSmallIntegerField(default=0)),
                ("seconds_left", models.PositiveIntegerField(null=True)),
                ("model_url", models.CharField(blank=True, max_length=2000)),
                ("error_code", models.CharField(blank=True, max_length=50)),
                ("error_message", models.TextField(blank=True)),
                ("notifications", models.PositiveSmallIntegerField(default=0)),
            ],
        ),
    ]
